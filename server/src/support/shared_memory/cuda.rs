//! CUDA shared memory: another process's allocation, opened by its IPC handle.
//!
//! The driver is loaded when the first region is registered; a machine without one refuses the
//! registration. Backends compute on the CPU, so inputs and outputs are copied.

#![expect(unsafe_code, reason = "the driver is a C library")]

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use bytes::Bytes;
use cudarc::driver::{CudaContext, DriverError, sys};
use engine::{Error, Result};
use proto::inference::cuda_shared_memory_status_response::RegionStatus;
use tensor::Payload;

/// The bytes of an IPC handle.
const HANDLE_BYTES: usize = 64;

/// An opened allocation.
#[derive(Debug)]
pub(crate) struct CudaRegion {
    context: Arc<CudaContext>,
    pointer: sys::CUdeviceptr,
    device: u64,
    byte_size: u64,
}

impl CudaRegion {
    /// Opens an allocation by its handle.
    pub(super) fn open(name: &str, handle: &[u8], device: i64, byte_size: u64) -> Result<Self> {
        let refused = |why: &str| {
            Error::invalid(format!("failed to register CUDA shared memory region: '{name}', {why}"))
        };
        let handle: &[u8; HANDLE_BYTES] = handle.try_into().map_err(|_| {
            refused(&format!("the handle has {} bytes, expected {HANDLE_BYTES}", handle.len()))
        })?;
        // SAFETY: loading the driver runs its initialisers, which are safe to run at any time.
        let has_driver = unsafe { sys::is_culib_present() };
        if !has_driver {
            return Err(refused("GPUs not supported"));
        }
        let ordinal = usize::try_from(device).map_err(|_| refused("the device is negative"))?;
        let context = CudaContext::new(ordinal).map_err(|error| refused(&error.to_string()))?;
        let handle = sys::CUipcMemHandle { reserved: handle.map(|byte| byte as c_char) };
        let flags = sys::CUipcMem_flags_enum::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
        let mut pointer: sys::CUdeviceptr = 0;
        // SAFETY: the context is current on this thread, and the driver checks the handle.
        let opened = unsafe { sys::cuIpcOpenMemHandle_v2(&raw mut pointer, handle, flags) };
        opened.result().map_err(|error| refused(&error.to_string()))?;
        let region = Self { context, pointer, device: ordinal as u64, byte_size };
        match region.allocated() {
            Ok(size) if size >= byte_size && byte_size > 0 => Ok(region),
            Ok(size) => Err(refused(&format!("{byte_size} bytes, the allocation has {size}"))),
            Err(error) => Err(refused(&error.to_string())),
        }
    }

    /// Returns the bytes from the pointer to the end of its allocation.
    fn allocated(&self) -> std::result::Result<u64, DriverError> {
        let (mut base, mut size) = (0, 0);
        // SAFETY: the pointer is one that the driver gave, and both targets are ours.
        let read =
            unsafe { sys::cuMemGetAddressRange_v2(&raw mut base, &raw mut size, self.pointer) };
        read.result()?;
        Ok((size as u64).saturating_sub(self.pointer - base))
    }

    pub(super) fn byte_size(&self) -> u64 {
        self.byte_size
    }

    pub(super) fn status(&self, name: &str) -> RegionStatus {
        RegionStatus { name: name.to_owned(), device_id: self.device, byte_size: self.byte_size }
    }

    /// Copies bytes of the region.
    pub(super) fn load(&self, offset: usize, length: usize) -> Result<Bytes> {
        let mut data = vec![0u8; length];
        let target = data.as_mut_ptr().cast::<c_void>();
        self.context.bind_to_thread().map_err(failed)?;
        // SAFETY: the caller checked offset and length against the region; the target has `length`.
        let copied = unsafe { sys::cuMemcpyDtoH_v2(target, self.pointer + offset as u64, length) };
        copied.result().map_err(failed)?;
        Ok(data.into())
    }

    /// Writes bytes into the region.
    pub(super) fn store(&self, offset: usize, data: &Payload) -> Result<()> {
        if (offset + data.len()) as u64 > self.byte_size {
            return Err(Error::internal("an output would pass the end of its region"));
        }
        self.context.bind_to_thread().map_err(failed)?;
        let mut at = self.pointer + offset as u64;
        for segment in data.segments() {
            let source = segment.as_ptr().cast::<c_void>();
            // SAFETY: the range was checked against the region; the source has `segment.len()`.
            let copied = unsafe { sys::cuMemcpyHtoD_v2(at, source, segment.len()) };
            copied.result().map_err(failed)?;
            at += segment.len() as u64;
        }
        Ok(())
    }
}

impl Drop for CudaRegion {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: the pointer was opened by its handle and is closed once, here.
            let closed = unsafe { sys::cuIpcCloseMemHandle(self.pointer) };
            if let Err(error) = closed.result() {
                tracing::warn!(%error, "cannot close a CUDA shared memory region");
            }
        }
    }
}

fn failed(error: DriverError) -> Error {
    Error::internal("the CUDA driver failed on a shared memory region").with_source(error)
}
