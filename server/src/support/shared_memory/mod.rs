//! Shared memory regions that clients register, and tensors that lie in them.
//!
//! A region is mapped once; inputs are read from it without a copy, outputs are written into it.
//! A region that is unregistered stays mapped until its last request is over. Off by default: a
//! client that may register regions may read and write every POSIX object of this user.

mod cuda;
mod guard;
mod system;

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use cuda::CudaRegion;
use engine::{Error, ErrorKind, Result};
use proto::inference::{
    CudaSharedMemoryRegisterRequest, SystemSharedMemoryRegisterRequest,
    cuda_shared_memory_status_response, system_shared_memory_status_response,
};
use system::SystemRegion;
use tensor::{Parameter, Parameters, Payload};

use crate::args::SharedMemoryArgs;

/// Regions that may be registered at once.
const MAX_REGIONS: usize = 4096;

/// The tensor parameters of shared memory.
const REGION: &str = "shared_memory_region";
const OFFSET: &str = "shared_memory_offset";
const BYTE_SIZE: &str = "shared_memory_byte_size";

/// Whether clients may register regions, and which.
#[derive(Clone, Debug, Default)]
pub struct SharedMemoryConfig {
    /// Clients may register regions.
    pub is_allowed: bool,
    /// What the key of a POSIX object has to begin with, without the first slash; empty: anything.
    pub key_prefixes: Vec<String>,
}

impl SharedMemoryConfig {
    /// Makes the configuration.
    pub(crate) fn from_args(args: &SharedMemoryArgs) -> Self {
        let key_prefixes = args.client_shm_key_prefix.clone();
        Self { is_allowed: args.allow_client_shm, key_prefixes }
    }
}

/// The regions of this server.
#[derive(Debug, Default)]
pub(crate) struct Regions {
    config: SharedMemoryConfig,
    by_name: RwLock<BTreeMap<String, Arc<Region>>>,
}

/// A registered region; requests that use it hold it.
#[derive(Debug)]
pub(crate) enum Region {
    System(SystemRegion),
    Cuda(CudaRegion),
}

/// Where a tensor lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    region: String,
    offset: u64,
    byte_size: u64,
}

impl Place {
    /// Reads where a tensor lies from its parameters; none if it is in the message.
    ///
    /// Errors: a parameter of a wrong type, a region without a size, a size without a region.
    pub(crate) fn read(what: &str, name: &str, parameters: &Parameters) -> Result<Option<Self>> {
        let number = |key: &str| match parameters.get(key) {
            None => Ok(None),
            Some(Parameter::Int64(value)) if *value >= 0 => Ok(Some(*value as u64)),
            Some(Parameter::Uint64(value)) => Ok(Some(*value)),
            Some(_) => Err(Error::invalid(format!(
                "unexpected '{key}' parameter type for {what} '{name}', expected int64_param, \
                 not negative"
            ))),
        };
        let region = match parameters.get(REGION) {
            None => None,
            Some(Parameter::String(region)) => Some(region.clone()),
            Some(_) => {
                return Err(Error::invalid(format!(
                    "unexpected '{REGION}' parameter type for {what} '{name}', \
                     expected string_param"
                )));
            }
        };
        let (offset, byte_size) = (number(OFFSET)?, number(BYTE_SIZE)?);
        match (region, byte_size) {
            (Some(region), Some(byte_size)) => {
                Ok(Some(Self { region, offset: offset.unwrap_or(0), byte_size }))
            }
            (None, None) if offset.is_none() => Ok(None),
            (Some(_), None) => Err(Error::invalid(format!(
                "'{REGION}' can not be specified without '{BYTE_SIZE}' parameter for \
                 {what} '{name}'"
            ))),
            (None, _) => Err(Error::invalid(format!(
                "'{BYTE_SIZE}' and '{OFFSET}' can not be specified without '{REGION}' parameter \
                 for {what} '{name}'"
            ))),
        }
    }

    /// Returns the parameters that tell a client where an output of this size lies.
    pub(crate) fn parameters(&self, byte_size: usize) -> Parameters {
        let mut parameters = Parameters::from([
            (REGION.to_owned(), Parameter::String(self.region.clone())),
            (BYTE_SIZE.to_owned(), Parameter::Int64(byte_size as i64)),
        ]);
        if self.offset > 0 {
            parameters.insert(OFFSET.to_owned(), Parameter::Int64(self.offset as i64));
        }
        parameters
    }
}

impl Regions {
    /// Makes the registry.
    pub(crate) fn new(config: SharedMemoryConfig) -> Self {
        Self { config, by_name: RwLock::default() }
    }

    /// Maps a POSIX shared memory object under a name.
    ///
    /// Errors: registering is off, a name that is taken, a key that may not be used, an object
    /// that is not there or too small.
    pub(crate) fn register_system(
        &self,
        request: &SystemSharedMemoryRegisterRequest,
    ) -> Result<()> {
        let SystemSharedMemoryRegisterRequest { name, key, offset, byte_size } = request;
        self.allow(name, "system")?;
        system::check_key(name, key, &self.config.key_prefixes)?;
        let region = SystemRegion::open(name, key, *offset, *byte_size)?;
        self.add(name, Region::System(region))
    }

    /// Opens another process's CUDA allocation under a name.
    ///
    /// Errors: as for POSIX objects; a machine without a GPU is an invalid request, as in Triton.
    pub(crate) fn register_cuda(&self, request: &CudaSharedMemoryRegisterRequest) -> Result<()> {
        let CudaSharedMemoryRegisterRequest { name, raw_handle, device_id, byte_size } = request;
        self.allow(name, "cuda")?;
        let region = CudaRegion::open(name, raw_handle, *device_id, *byte_size)?;
        self.add(name, Region::Cuda(region))
    }

    fn check_allowed(&self) -> Result<()> {
        match self.config.is_allowed {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Unimplemented,
                "shared memory registration is disabled; the server needs --allow-client-shm",
            )),
        }
    }

    fn allow(&self, name: &str, kind: &str) -> Result<()> {
        self.check_allowed()?;
        if name.is_empty() {
            return Err(Error::invalid(format!(
                "'region name' is necessary to register {kind} shared memory region"
            )));
        }
        let regions = self.read();
        if regions.contains_key(name) {
            return Err(taken(name));
        }
        match regions.len() < MAX_REGIONS {
            true => Ok(()),
            false => Err(Error::new(
                ErrorKind::Overloaded,
                format!("{MAX_REGIONS} shared memory regions are registered, which is the limit"),
            )),
        }
    }

    fn add(&self, name: &str, region: Region) -> Result<()> {
        let mut regions = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        match regions.entry(name.to_owned()) {
            std::collections::btree_map::Entry::Occupied(_) => Err(taken(name)),
            std::collections::btree_map::Entry::Vacant(free) => {
                free.insert(Arc::new(region));
                Ok(())
            }
        }
    }

    /// Forgets a POSIX region, or all of them for an empty name; an unknown name is fine.
    ///
    /// Errors: registering is off.
    pub(crate) fn unregister_system(&self, name: &str) -> Result<()> {
        self.unregister(name, |region| matches!(region, Region::System(_)))
    }

    /// Forgets a CUDA region, or all of them for an empty name; an unknown name is fine.
    ///
    /// Errors: registering is off.
    pub(crate) fn unregister_cuda(&self, name: &str) -> Result<()> {
        self.unregister(name, |region| matches!(region, Region::Cuda(_)))
    }

    fn unregister(&self, name: &str, is_kind: impl Fn(&Region) -> bool) -> Result<()> {
        self.check_allowed()?;
        let mut regions = self.by_name.write().unwrap_or_else(PoisonError::into_inner);
        regions.retain(|known, region| !(is_kind(region) && (name.is_empty() || known == name)));
        Ok(())
    }

    /// Returns the POSIX regions: the one named, or all for an empty name.
    ///
    /// Errors: a name that is not registered.
    pub(crate) fn system_status(
        &self,
        name: &str,
    ) -> Result<Vec<system_shared_memory_status_response::RegionStatus>> {
        self.status("system", name, |name, region| match region {
            Region::System(region) => Some(region.status(name)),
            Region::Cuda(_) => None,
        })
    }

    /// Returns the CUDA regions: the one named, or all for an empty name.
    ///
    /// Errors: a name that is not registered.
    pub(crate) fn cuda_status(
        &self,
        name: &str,
    ) -> Result<Vec<cuda_shared_memory_status_response::RegionStatus>> {
        self.status("cuda", name, |name, region| match region {
            Region::Cuda(region) => Some(region.status(name)),
            Region::System(_) => None,
        })
    }

    fn status<T>(
        &self,
        kind: &str,
        name: &str,
        read: impl Fn(&str, &Region) -> Option<T>,
    ) -> Result<Vec<T>> {
        let regions = self.read();
        let wanted = regions.iter().filter(|(known, _)| name.is_empty() || *known == name);
        let found: Vec<T> = wanted.filter_map(|(name, region)| read(name, region)).collect();
        match found.is_empty() && !name.is_empty() {
            false => Ok(found),
            true => Err(Error::not_found(format!(
                "Unable to find {kind} shared memory region: '{name}'"
            ))),
        }
    }

    /// Returns the region that holds a place.
    ///
    /// Errors: an unknown region, bounds outside of it.
    pub(crate) fn find(&self, place: &Place) -> Result<Arc<Region>> {
        let regions = self.read();
        let region = regions.get(&place.region).cloned().ok_or_else(|| {
            Error::not_found(format!("Unable to find shared memory region: '{}'", place.region))
        })?;
        let size = match &*region {
            Region::System(system) => system.byte_size(),
            Region::Cuda(cuda) => cuda.byte_size(),
        };
        let Place { region: name, offset, byte_size } = place;
        if *offset >= size {
            return Err(Error::invalid(format!(
                "Invalid offset for shared memory region: '{name}': {offset}, the region has {size} \
                 bytes"
            )));
        }
        match offset.checked_add(*byte_size) {
            Some(end) if end <= size => Ok(region),
            Some(_) => Err(Error::invalid(format!(
                "Invalid offset + byte size for shared memory region: '{name}': {offset} + \
                 {byte_size}, the region has {size} bytes"
            ))),
            None => Err(Error::invalid(format!(
                "Integer overflow detected: byte_size ({byte_size}) + offset ({offset}) exceeds \
                 maximum value ({}) for region '{name}'",
                u64::MAX
            ))),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<String, Arc<Region>>> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Region {
    /// Returns the bytes of an input that lies here; [`Regions::find`] checked the place.
    ///
    /// Errors: memory that is gone, a device that fails.
    pub(crate) fn load(&self, place: &Place) -> Result<Payload> {
        let (offset, length) = (place.offset as usize, place.byte_size as usize);
        match self {
            Self::System(system) => Ok(system.load(offset, length)?.into()),
            Self::Cuda(cuda) => Ok(cuda.load(offset, length)?.into()),
        }
    }

    /// Writes an output where the client wants it; [`Regions::find`] checked the place.
    ///
    /// Errors: an output that does not fit, memory that is gone, a device that fails.
    pub(crate) fn store(&self, output: &str, place: &Place, data: &Payload) -> Result<()> {
        let length = data.len();
        if length as u64 > place.byte_size {
            return Err(Error::internal(format!(
                "shared memory size specified with the request for output '{output}' ({} bytes) \
                 should be at least {length} bytes to hold the results",
                place.byte_size
            )));
        }
        match self {
            Self::System(system) => system.store(place.offset as usize, data),
            Self::Cuda(cuda) => cuda.store(place.offset as usize, data),
        }
    }

    /// Returns whether bytes lie in this region's own memory.
    pub(crate) fn holds(&self, bytes: &bytes::Bytes) -> bool {
        match self {
            Self::System(system) => system.holds(bytes),
            Self::Cuda(_) => false,
        }
    }

    /// Checks that what was read is what the client had there.
    ///
    /// Errors: an object that its owner has cut since.
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Self::System(system) => system.check(),
            Self::Cuda(_) => Ok(()),
        }
    }
}

fn taken(name: &str) -> Error {
    Error::new(
        ErrorKind::AlreadyExists,
        format!("shared memory region '{name}' already in manager"),
    )
}
