//! One reader's knowledge of the folder. All of it blocks.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::{Error, Result};
use tracing::warn;

use super::failed;
use super::owner::{file_name, is_alive, open, parse_file_name};
use crate::instance::{Instance, InstanceId, MAX_RECORD_BYTES};

/// The files of one owner: the newest generation of each instance.
type Files = BTreeMap<InstanceId, u64>;

/// What was read so far; files never change, so each is read once.
#[derive(Debug)]
pub(super) struct Scan {
    root: PathBuf,
    is_made: bool,
    owners: BTreeMap<InstanceId, Home>,
    /// What could not be read at the last look, which was reported.
    unreadable: BTreeSet<PathBuf>,
}

/// What was read of one owner.
type Home = BTreeMap<InstanceId, Seen>;

#[derive(Clone, Debug)]
struct Seen {
    generation: u64,
    /// Nothing if the file cannot be understood.
    instance: Option<Arc<Instance>>,
}

impl Scan {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, is_made: false, owners: BTreeMap::new(), unreadable: BTreeSet::new() }
    }

    /// Returns all instances whose owners live, and removes what dead owners left. What cannot be
    /// read is left out, or stays as it was read before, and hides nothing else.
    pub(super) fn read(&mut self) -> Result<Vec<Arc<Instance>>> {
        if !self.is_made {
            // Later, a folder that is not there is an outage and not an empty one.
            fs::create_dir_all(&self.root).map_err(|error| failed("make", &self.root, error))?;
            self.is_made = true;
        }
        let entries =
            fs::read_dir(&self.root).map_err(|error| failed("read", &self.root, error))?;
        let (mut owners, mut unreadable) = (BTreeMap::new(), BTreeSet::new());
        for entry in entries {
            let entry = entry.map_err(|error| failed("read", &self.root, error))?;
            let name = entry.file_name();
            let Some(owner) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            match self.look(owner, &entry.path(), &mut unreadable) {
                Ok(Some(home)) => {
                    owners.insert(owner, home);
                }
                Ok(None) => {
                    fs::remove_dir_all(entry.path()).ok();
                }
                Err(error) => {
                    self.report(entry.path(), &error, &mut unreadable);
                    owners.extend(self.owners.remove(&owner).map(|home| (owner, home)));
                }
            }
        }
        (self.owners, self.unreadable) = (owners, unreadable);
        let seen = self.owners.values().flat_map(BTreeMap::values);
        Ok(seen.filter_map(|seen| seen.instance.clone()).collect())
    }

    /// Reads the folder of an owner, or nothing if the owner is dead.
    fn look(
        &self,
        owner: InstanceId,
        home: &Path,
        unreadable: &mut BTreeSet<PathBuf>,
    ) -> Result<Option<Home>> {
        match is_alive(home)? {
            true => self.read_owner(owner, home, unreadable).map(Some),
            false => Ok(None),
        }
    }

    /// Reports what cannot be read, once.
    fn report(&self, path: PathBuf, error: &Error, unreadable: &mut BTreeSet<PathBuf>) {
        if !self.unreadable.contains(&path) {
            warn!(path = %path.display(), %error, "registration left out");
        }
        unreadable.insert(path);
    }

    fn read_owner(
        &self,
        owner: InstanceId,
        home: &Path,
        unreadable: &mut BTreeSet<PathBuf>,
    ) -> Result<Home> {
        let before = self.owners.get(&owner);
        let mut files = list(home)?;
        let is_missing = |id: &InstanceId| !files.contains_key(id);
        if before.is_some_and(|before| before.keys().any(is_missing)) {
            // A file that is being replaced can escape a listing, but not two.
            files = list(home)?;
        }
        let mut seen = BTreeMap::new();
        for (id, generation) in files {
            let old = before.and_then(|before| before.get(&id));
            if let Some(old) = old.filter(|old| old.generation == generation) {
                seen.insert(id, old.clone());
                continue;
            }
            let path = home.join(file_name(id, generation));
            match read_file(&path) {
                Ok(Some(record)) => {
                    seen.insert(id, Seen { generation, instance: understand(id, &record) });
                }
                // It is being replaced: the next look will find the new one.
                Ok(None) => seen.extend(old.map(|old| (id, old.clone()))),
                // The next look tries it again.
                Err(error) => {
                    self.report(path, &error, unreadable);
                    seen.extend(old.map(|old| (id, old.clone())));
                }
            }
        }
        Ok(seen)
    }
}

fn list(home: &Path) -> Result<Files> {
    let mut files = Files::new();
    let entries = match fs::read_dir(home) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(files),
        Err(error) => return Err(failed("read", home, error)),
    };
    for entry in entries {
        let name = entry.map_err(|error| failed("read", home, error))?.file_name();
        if let Some((id, generation)) = name.to_str().and_then(parse_file_name) {
            let newest = files.entry(id).or_default();
            *newest = generation.max(*newest);
        }
    }
    Ok(files)
}

/// Returns the content of a file, or nothing if it is gone. One byte more than allowed is read,
/// which whoever parses it finds out.
fn read_file(path: &Path) -> Result<Option<Vec<u8>>> {
    let Some(file) = open(path)? else { return Ok(None) };
    let mut bytes = Vec::new();
    let read = file.take(MAX_RECORD_BYTES as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| failed("read", path, error))?;
    Ok(Some(bytes))
}

/// Returns the instance of a record; one that cannot be understood is reported and left out.
fn understand(id: InstanceId, record: &[u8]) -> Option<Arc<Instance>> {
    let instance = Instance::from_json(record).and_then(|instance| match instance.id == id {
        true => Ok(instance),
        false => Err(Error::invalid(format!("instance: expected id {id}, got {}", instance.id))),
    });
    match instance {
        Ok(instance) => Some(Arc::new(instance)),
        Err(error) => {
            warn!(instance = %id, %error, "registration left out");
            None
        }
    }
}
