//! POSIX shared memory, mapped once.

#![expect(unsafe_code, reason = "a mapping that other processes share is raw memory")]

use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use bytes::Bytes;
use engine::{Error, ErrorKind, Result};
use memmap2::{MmapOptions, MmapRaw};
use proto::inference::system_shared_memory_status_response::RegionStatus;
use rustix::io::Errno;
use rustix::shm::{Mode, OFlags};
use tensor::Payload;

use super::guard::Guard;

/// What Triton's own regions begin with; a client's may not.
const RESERVED_PREFIXES: [&str; 2] =
    ["triton_python_backend_shm_region_", "triton_python_backend_shm"];

/// A mapped part of a POSIX shared memory object.
#[derive(Debug)]
pub(crate) struct SystemRegion {
    mapping: Arc<Mapping>,
    key: String,
    offset: u64,
}

#[derive(Debug)]
struct Mapping {
    memory: MmapRaw,
    /// Kept to see whether the object still is as long as what is mapped.
    file: File,
    /// The length of the object that the mapping needs.
    needed: u64,
    /// Keeps the process alive when the object is cut under the mapping.
    guard: Guard,
}

/// Checks the key of an object: one name, which may begin with a slash.
///
/// Errors: no name, a path, a reserved or forbidden prefix.
pub(super) fn check_key(region: &str, key: &str, prefixes: &[String]) -> Result<()> {
    let name = key.strip_prefix('/').unwrap_or(key);
    let is_path = name.contains(['/', '\0']) || name == "." || name == "..";
    if name.is_empty() || is_path || name.len() > 255 {
        return Err(Error::invalid(format!(
            "cannot register shared memory region '{region}' - invalid shm key '{key}', expected a \
             name, which may begin with one slash"
        )));
    }
    if let Some(prefix) = RESERVED_PREFIXES.iter().find(|prefix| name.starts_with(**prefix)) {
        return Err(Error::invalid(format!(
            "cannot register shared memory region '{region}' with key '{key}' as the key contains \
             the reserved prefix '{prefix}'"
        )));
    }
    let is_listed = prefixes.iter().any(|prefix| name.starts_with(prefix.trim_start_matches('/')));
    match prefixes.is_empty() || is_listed {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "shared memory key `{key}` is not among those that the server allows"
        ))),
    }
}

/// Checks that an opened file is a shared memory object that a client may name: a file with one
/// name, of this user, or one that its owner lets everybody write. Root serves clients of all users.
fn check_kind(found: &Metadata, user: u32) -> std::result::Result<(), String> {
    if !found.is_file() {
        return Err("it is no shared memory object".into());
    }
    if found.nlink() > 1 {
        return Err("it has several names".into());
    }
    match user == 0 || found.uid() == user || found.mode() & 0o002 != 0 {
        true => Ok(()),
        false => Err("it belongs to another user".into()),
    }
}

impl SystemRegion {
    /// Opens and maps a part of an object.
    pub(super) fn open(name: &str, key: &str, offset: u64, byte_size: u64) -> Result<Self> {
        let failed = |why: String| {
            Error::internal(format!("Unable to open shared memory region: '{key}': {why}"))
        };
        // A link could lead to any file, and opening a pipe would wait for somebody at its end.
        let careful = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let flags = OFlags::RDWR | OFlags::from_bits_retain(careful.bits());
        let opened = match rustix::shm::open(key, flags, Mode::empty()) {
            Err(Errno::LOOP) => return Err(failed("it is a symbolic link".into())),
            opened => opened.map_err(|error| failed(error.to_string()))?,
        };
        let file = File::from(opened);
        let found = file.metadata().map_err(|error| failed(error.to_string()))?;
        check_kind(&found, rustix::process::geteuid().as_raw()).map_err(failed)?;
        let needed = offset.checked_add(byte_size).filter(|_| byte_size > 0).ok_or_else(|| {
            Error::invalid(format!(
                "failed to register shared memory region '{name}': invalid args: no bytes, or too \
                 many"
            ))
        })?;
        let size = found.len();
        if needed > size {
            return Err(Error::invalid(format!(
                "failed to register shared memory region '{name}': invalid args: \
                 offset {offset} and {byte_size} bytes, the object has {size}"
            )));
        }
        let length = usize::try_from(byte_size).map_err(|error| failed(error.to_string()))?;
        let memory = MmapOptions::new().offset(offset).len(length).map_raw(&file);
        let memory = memory.map_err(|error| failed(error.to_string()))?;
        let guard = Guard::over(memory.as_ptr() as usize, memory.len());
        let mapping = Arc::new(Mapping { memory, file, needed, guard });
        Ok(Self { mapping, key: key.to_owned(), offset })
    }

    pub(super) fn byte_size(&self) -> u64 {
        self.mapping.memory.len() as u64
    }

    pub(super) fn status(&self, name: &str) -> RegionStatus {
        RegionStatus {
            name: name.to_owned(),
            key: self.key.clone(),
            offset: self.offset,
            byte_size: self.byte_size(),
        }
    }

    /// Returns bytes of the region, shared with it; they keep it mapped.
    ///
    /// A client that writes them while its request runs gets an answer made of both.
    pub(super) fn load(&self, offset: usize, length: usize) -> Result<Bytes> {
        self.mapping.check()?;
        Ok(Bytes::from_owner(View { mapping: self.mapping.clone(), offset, length }))
    }

    /// Checks that the object still is as long as the region.
    pub(super) fn check(&self) -> Result<()> {
        self.mapping.check()
    }

    /// Returns whether bytes lie in the region's own memory.
    pub(super) fn holds(&self, bytes: &Bytes) -> bool {
        let start = self.mapping.memory.as_ptr() as usize;
        (start..start + self.mapping.memory.len()).contains(&(bytes.as_ptr() as usize))
    }

    /// Writes bytes into the region.
    pub(super) fn store(&self, offset: usize, data: &Payload) -> Result<()> {
        self.mapping.check()?;
        let memory = &self.mapping.memory;
        let mut at = offset;
        for segment in data.segments() {
            if at + segment.len() > memory.len() {
                return Err(Error::internal("an output would pass the end of its region"));
            }
            // SAFETY: the target lies in the mapping, which is writable and lives in `self`; the
            // segment is other memory, or the same bytes, which `copy` allows to overlap.
            unsafe {
                std::ptr::copy(segment.as_ptr(), memory.as_mut_ptr().add(at), segment.len());
            }
            at += segment.len();
        }
        self.mapping.check()
    }
}

impl Mapping {
    /// Refuses an object that was cut since it was mapped.
    fn check(&self) -> Result<()> {
        match self.file.metadata() {
            Ok(metadata) if metadata.len() >= self.needed && !self.guard.was_cut() => Ok(()),
            _ => Err(Error::new(
                ErrorKind::InvalidRequest,
                "the shared memory object is or was shorter than its region; register it anew",
            )),
        }
    }
}

/// Bytes of a mapping.
struct View {
    mapping: Arc<Mapping>,
    offset: usize,
    length: usize,
}

impl AsRef<[u8]> for View {
    fn as_ref(&self) -> &[u8] {
        let memory = &self.mapping.memory;
        // SAFETY: offset and length were checked against the mapping, which lives in `self`. The
        // client may write it at any time; the bytes are only ever copied or read as numbers.
        unsafe { std::slice::from_raw_parts(memory.as_ptr().add(self.offset), self.length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_single_names() {
        let allowed = ["app".to_owned()];
        let table = [
            ("/region", true, false),
            ("app_1", true, true),
            ("/app_1", true, true),
            ("/", false, false),
            ("", false, false),
            ("/a/b", false, false),
            ("/..", false, false),
            ("a\0b", false, false),
            ("/triton_python_backend_shm_x", false, false),
        ];
        for (key, is_fine, is_listed) in table {
            assert_eq!(check_key("r", key, &[]).is_ok(), is_fine, "{key}");
            assert_eq!(check_key("r", key, &allowed).is_ok(), is_listed, "{key}");
        }
    }

    #[test]
    fn what_is_no_object_of_its_own_is_refused() {
        let outside = tempfile::NamedTempFile::new().unwrap();
        outside.as_file().set_len(4096).unwrap();
        let folder = std::path::Path::new("/dev/shm");
        let named = |kind: &str| format!("stator-test-{kind}-{}", std::process::id());
        let (object, link) = (folder.join(named("object")), folder.join(named("link")));
        let (twin, pipe) = (folder.join(named("twin")), folder.join(named("pipe")));
        std::fs::write(&object, [0; 4096]).unwrap();
        std::fs::hard_link(&object, &twin).unwrap();
        std::os::unix::fs::symlink(outside.path(), &link).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        let table =
            [("link", "symbolic link"), ("twin", "several names"), ("pipe", "no shared memory")];
        let outcomes = table.map(|(kind, why)| (SystemRegion::open("r", &named(kind), 0, 1), why));
        for path in [object, link, twin, pipe] {
            std::fs::remove_file(path).unwrap();
        }
        for (outcome, why) in outcomes {
            let error = outcome.unwrap_err();
            assert!(error.message().contains(why), "{error}");
        }
        let found = outside.as_file().metadata().unwrap();
        let (owner, other) = (found.uid(), found.uid() + 1);
        assert!(check_kind(&found, 0).is_ok() && check_kind(&found, owner).is_ok());
        assert!(check_kind(&found, other).unwrap_err().contains("another user"));
    }

    #[test]
    fn a_region_is_read_and_written_in_place() {
        let key = format!("/stator-test-{}", std::process::id());
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
        let file = File::from(rustix::shm::open(&key, flags, Mode::RUSR | Mode::WUSR).unwrap());
        file.set_len(8192).unwrap();
        let region = SystemRegion::open("r", &key, 4096, 4096).unwrap();
        let too_long = SystemRegion::open("r", &key, 4096, 4097).unwrap_err();
        rustix::shm::unlink(&key).unwrap();
        assert_eq!(too_long.kind(), ErrorKind::InvalidRequest);

        let data: Payload = [&b"ab"[..], b"cd"].map(Bytes::from_static).into_iter().collect();
        region.store(10, &data).unwrap();
        let seen = region.load(10, 4).unwrap();
        assert_eq!(seen, "abcd");
        assert!(region.store(4094, &data).is_err());
        drop(region);
        assert_eq!(seen, "abcd", "what was read keeps the region mapped");
        drop(seen);

        file.set_len(0).unwrap();
        let missing = SystemRegion::open("r", &key, 0, 1).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::Internal);
    }
}
