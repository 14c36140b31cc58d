//! One reader's knowledge of the folder. All of it blocks.
//!
//! An owner's folder is listed when its time says that something changed in it, and now and then all
//! the same: a process may have a thousand files there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use engine::{Error, Result};
use tracing::warn;

use super::failed;
use super::owner::{SHORT_LOOKS, file_name, is_alive, open, parse_file_name, settled};
use crate::instance::{Instance, InstanceId, MAX_RECORD_BYTES};

/// The files of one owner: the newest generation of each instance.
type Files = BTreeMap<InstanceId, u64>;

/// What was read so far; files never change, so each is read once.
#[derive(Debug)]
pub(super) struct Scan {
    root: PathBuf,
    is_made: bool,
    owners: BTreeMap<InstanceId, OwnerDir>,
    /// What could not be read at the last look, which was reported.
    unreadable: BTreeSet<PathBuf>,
}

/// What was read of one owner.
#[derive(Debug, Default)]
struct OwnerDir {
    seen: BTreeMap<InstanceId, Seen>,
    /// When the folder had changed last, if all of it was read and every later change would show;
    /// and how often that was enough to know since.
    since: Option<SystemTime>,
    short_looks: u32,
}

/// What a look at an owner found.
enum Found {
    Dead,
    Unchanged,
    Read(OwnerDir),
}

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

    /// Looks which instances there are whose owners live, and removes what dead owners left; returns
    /// whether anything may be new. What cannot be read is left out, or stays as it was read before,
    /// and hides nothing else.
    pub(super) fn read(&mut self) -> Result<bool> {
        if !self.is_made {
            // Later, a folder that is not there is an outage and not an empty one.
            fs::create_dir_all(&self.root).map_err(|error| failed("make", &self.root, error))?;
            self.is_made = true;
        }
        let entries =
            fs::read_dir(&self.root).map_err(|error| failed("read", &self.root, error))?;
        let (mut owners, mut unreadable) = (BTreeMap::new(), BTreeSet::new());
        let mut is_new = false;
        for entry in entries {
            let entry = entry.map_err(|error| failed("read", &self.root, error))?;
            let name = entry.file_name();
            let Some(owner) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            match self.look(owner, &entry.path(), &mut unreadable) {
                Ok(Found::Read(home)) => {
                    is_new = true;
                    owners.insert(owner, home);
                }
                Ok(Found::Unchanged) => {
                    let home = self.owners.remove(&owner).unwrap_or_default();
                    owners.insert(owner, OwnerDir { short_looks: home.short_looks + 1, ..home });
                }
                Ok(Found::Dead) => {
                    fs::remove_dir_all(entry.path()).ok();
                }
                Err(error) => {
                    self.report(entry.path(), &error, &mut unreadable);
                    owners.extend(self.owners.remove(&owner).map(|home| (owner, home)));
                }
            }
        }
        is_new |= self.owners.keys().any(|owner| !owners.contains_key(owner));
        (self.owners, self.unreadable) = (owners, unreadable);
        Ok(is_new)
    }

    /// Returns what the last look found.
    pub(super) fn listing(&self) -> Vec<Arc<Instance>> {
        let seen = self.owners.values().flat_map(|home| home.seen.values());
        seen.filter_map(|seen| seen.instance.clone()).collect()
    }

    /// Reads the folder of an owner, if there may be anything new in it.
    fn look(
        &self,
        owner: InstanceId,
        home: &Path,
        unreadable: &mut BTreeSet<PathBuf>,
    ) -> Result<Found> {
        if !is_alive(home)? {
            return Ok(Found::Dead);
        }
        let since = settled(home);
        let is_same = |before: &OwnerDir| before.since == since && before.short_looks < SHORT_LOOKS;
        if since.is_some() && self.owners.get(&owner).is_some_and(is_same) {
            return Ok(Found::Unchanged);
        }
        self.read_owner(owner, (home, since), unreadable).map(Found::Read)
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
        (home, since): (&Path, Option<SystemTime>),
        unreadable: &mut BTreeSet<PathBuf>,
    ) -> Result<OwnerDir> {
        let before = self.owners.get(&owner).map(|home| &home.seen);
        let mut is_whole = true;
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
                Ok(None) => {
                    is_whole = false;
                    seen.extend(old.map(|old| (id, old.clone())));
                }
                // The next look tries it again.
                Err(error) => {
                    is_whole = false;
                    self.report(path, &error, unreadable);
                    seen.extend(old.map(|old| (id, old.clone())));
                }
            }
        }
        Ok(OwnerDir { seen, since: since.filter(|_| is_whole), short_looks: 0 })
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::owner::Owner;
    use super::*;

    /// Makes folders of owners as old as they would be without us.
    fn age(root: &Path, time: SystemTime) {
        for home in fs::read_dir(root).unwrap().flatten() {
            fs::File::open(home.path()).unwrap().set_modified(time).unwrap();
        }
    }

    #[test]
    fn a_folder_is_listed_when_its_time_tells_of_a_change_and_now_and_then() {
        let folder = tempfile::tempdir().unwrap();
        let (owner, mut scan) = (Owner::new(folder.path().into()), Scan::new(folder.path().into()));
        let write = |id: u64| {
            let mut instance = Instance::new("a".parse().unwrap(), format!("grpc://h:{id}"));
            instance.id = InstanceId(id);
            owner.write(instance.id, &instance.to_json().unwrap()).unwrap();
        };
        write(1);
        assert!(scan.read().unwrap() && scan.listing().len() == 1);
        assert!(scan.read().unwrap(), "another change would not show in a time so young");
        let time = SystemTime::now() - Duration::from_secs(60);
        age(folder.path(), time);
        assert!(scan.read().unwrap() && !scan.read().unwrap() && scan.listing().len() == 1);
        write(2);
        assert!(scan.read().unwrap() && scan.listing().len() == 2);
        age(folder.path(), time);
        assert!(scan.read().unwrap() && !scan.read().unwrap());
        // A change that leaves no trace, as on file systems that keep no times.
        write(3);
        age(folder.path(), time);
        let short = (1..).take_while(|_| !scan.read().unwrap()).count();
        assert!(short < SHORT_LOOKS as usize && scan.listing().len() == 3);
        drop(owner);
        assert!(scan.read().unwrap() && scan.listing().is_empty());
    }
}
