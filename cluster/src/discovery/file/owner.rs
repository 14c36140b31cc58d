//! This process's part of the folder: its lock and the files of its instances.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use engine::Result;

use super::{LOCK, failed};
use crate::instance::InstanceId;

/// How old an owner's folder is that was never finished and may be swept away.
const UNFINISHED_AGE: Duration = Duration::from_secs(60);

/// How long ago a folder must have changed for a later change to show in its time: file systems
/// count that in steps of up to 2 s.
const SETTLED: Duration = Duration::from_secs(3);

/// How often in a row the time of a folder is enough to know what is in it.
pub(super) const SHORT_LOOKS: u32 = 25;

/// This process in the folder. All of it blocks.
#[derive(Debug)]
pub(super) struct Owner {
    root: PathBuf,
    state: Mutex<Option<OwnerDir>>,
}

/// The folder of this process while it is there.
#[derive(Debug)]
struct OwnerDir {
    path: PathBuf,
    /// Held locked; the lock ends with it.
    _lock: File,
    /// Which generation of each instance's file is the present one.
    files: BTreeMap<InstanceId, u64>,
    /// Older generations that could not be removed. The present one hides each of them, and it
    /// is not removed before they are: what is left would be a ghost.
    leftovers: BTreeSet<(InstanceId, u64)>,
    generation: u64,
    /// When the folder had changed last at the last look that found all files, and how often that
    /// was enough to know since.
    whole_since: Option<SystemTime>,
    short_looks: u32,
}

impl Owner {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, state: Mutex::new(None) }
    }

    fn state(&self) -> MutexGuard<'_, Option<OwnerDir>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the file of an instance. Readers see the old one or the new one, and each whole.
    pub(super) fn write(&self, id: InstanceId, json: &[u8]) -> Result<()> {
        let mut state = self.state();
        let home = match state.take() {
            Some(home) if home.path.join(LOCK).exists() => state.insert(home),
            before => match OwnerDir::make(&self.root) {
                Ok(made) => state.insert(made.following(before)),
                Err(error) => {
                    // It may come back as it was.
                    *state = before;
                    return Err(error);
                }
            },
        };
        home.generation += 1;
        let draft = home.path.join(format!(".{id}"));
        let path = home.path.join(file_name(id, home.generation));
        fs::write(&draft, json).map_err(|error| failed("write", &draft, error))?;
        fs::rename(&draft, &path).map_err(|error| failed("write", &path, error))?;
        if let Some(old) = home.files.insert(id, home.generation) {
            home.leftovers.insert((id, old));
            // The new one can be seen, whatever becomes of the old.
            home.clear(id).ok();
        }
        Ok(())
    }

    /// Removes the file of an instance.
    pub(super) fn remove(&self, id: InstanceId) -> Result<()> {
        let mut state = self.state();
        let Some(home) = &mut *state else { return Ok(()) };
        home.clear(id)?;
        if let Some(generation) = home.files.get(&id) {
            remove(&home.path.join(file_name(id, *generation)))?;
            home.files.remove(&id);
        }
        Ok(())
    }

    /// Returns whether the file of an instance is where it was put.
    pub(super) fn has(&self, id: InstanceId) -> bool {
        let state = self.state();
        let Some(home) = &*state else { return false };
        let generation = home.files.get(&id);
        let is_there = |name: String| home.path.join(name).exists();
        generation
            .is_some_and(|generation| is_there(file_name(id, *generation)) && is_there(LOCK.into()))
    }

    /// Returns whether all files are where they were put.
    pub(super) fn is_whole(&self) -> bool {
        let mut state = self.state();
        let Some(home) = &mut *state else { return true };
        let since = settled(&home.path);
        if since.is_some() && since == home.whole_since && home.short_looks < SHORT_LOOKS {
            home.short_looks += 1;
            return true;
        }
        let is_whole = home.is_whole();
        (home.whole_since, home.short_looks) = (since.filter(|_| is_whole), 0);
        is_whole
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if let Some(home) = &*self.state() {
            fs::remove_dir_all(&home.path).ok();
        }
    }
}

impl OwnerDir {
    /// Returns whether all files are where they were put.
    fn is_whole(&self) -> bool {
        let Ok(entries) = fs::read_dir(&self.path) else { return false };
        let names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        let found = names.iter().filter(|name| {
            let parsed = name.to_str().and_then(parse_file_name);
            parsed.is_some_and(|(id, generation)| self.files.get(&id) == Some(&generation))
        });
        found.count() == self.files.len() && names.iter().any(|name| name == LOCK)
    }

    /// Makes the folder of an owner with a new name. It appears with its lock held, so that
    /// nobody finds it free.
    fn make(root: &Path) -> Result<Self> {
        fs::create_dir_all(root).map_err(|error| failed("make", root, error))?;
        sweep(root);
        let name = InstanceId::random();
        let (draft, path) = (root.join(format!(".{name}")), root.join(name.to_string()));
        fs::create_dir(&draft).map_err(|error| failed("make", &draft, error))?;
        let lock_path = draft.join(LOCK);
        let lock = File::create(&lock_path).map_err(|error| failed("make", &lock_path, error))?;
        lock.try_lock().map_err(|error| failed("lock", &lock_path, error.into()))?;
        fs::rename(&draft, &path).map_err(|error| failed("make", &path, error))?;
        let (files, leftovers) = (BTreeMap::new(), BTreeSet::new());
        let (whole_since, short_looks) = (None, 0);
        Ok(Self { path, _lock: lock, files, leftovers, generation: 0, whole_since, short_looks })
    }

    /// Takes the place of a folder that is gone. The files of the others are missed until who keeps
    /// them has written them again.
    fn following(self, before: Option<Self>) -> Self {
        match before {
            Some(Self { files, generation, .. }) => Self { files, generation, ..self },
            None => self,
        }
    }

    /// Removes the older generations of an instance.
    fn clear(&mut self, id: InstanceId) -> Result<()> {
        let old: Vec<_> = self.leftovers.range((id, 0)..=(id, u64::MAX)).copied().collect();
        for (id, generation) in old {
            remove(&self.path.join(file_name(id, generation)))?;
            self.leftovers.remove(&(id, generation));
        }
        Ok(())
    }
}

/// Returns when a folder changed last, if every later change would show in that time.
pub(super) fn settled(folder: &Path) -> Option<SystemTime> {
    let changed = fs::metadata(folder).ok()?.modified().ok()?;
    let age = SystemTime::now().duration_since(changed).ok()?;
    (age >= SETTLED).then_some(changed)
}

/// Removes folders of owners that died before they were finished.
fn sweep(root: &Path) {
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_draft = name.to_str().and_then(|name| name.strip_prefix('.'));
        let is_draft = is_draft.is_some_and(|name| name.parse::<InstanceId>().is_ok());
        let age = entry.metadata().and_then(|data| data.modified()).ok();
        let age = age.and_then(|time| time.elapsed().ok()).unwrap_or_default();
        if is_draft && age > UNFINISHED_AGE {
            fs::remove_dir_all(entry.path()).ok();
        }
    }
}

/// Returns whether the owner of a folder lives; an owner without a lock has just ended.
pub(super) fn is_alive(home: &Path) -> Result<bool> {
    let path = home.join(LOCK);
    let Some(lock) = open(&path)? else { return Ok(false) };
    match lock.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(failed("lock", &path, error)),
    }
}

/// Opens a file to read, or returns nothing if it is not there. Only a plain file is opened:
/// a pipe in its place would keep who opens it waiting.
pub(super) fn open(path: &Path) -> Result<Option<File>> {
    let is_plain = match fs::metadata(path) {
        Ok(data) => data.is_file(),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("open", path, error)),
    };
    if !is_plain {
        return Err(failed("open", path, std::io::Error::other("it is no plain file")));
    }
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("open", path, error)),
    }
}

/// Removes a file; one that is not there is removed already.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", path, error)),
        _ => Ok(()),
    }
}

/// Returns the name of a file; each generation has its own, so that a name means one content.
pub(super) fn file_name(id: InstanceId, generation: u64) -> String {
    format!("{id}-{generation:016x}.json")
}

/// Returns whose file it is and of which generation.
pub(super) fn parse_file_name(name: &str) -> Option<(InstanceId, u64)> {
    let (id, generation) = name.strip_suffix(".json")?.split_once('-')?;
    let generation: InstanceId = generation.parse().ok()?;
    Some((id.parse().ok()?, generation.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_that_could_not_be_removed_is_not_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let owner = Owner::new(folder.path().to_owned());
        let id = InstanceId(3);
        owner.write(id, b"first").unwrap();
        let home = owner.state().as_ref().unwrap().path.clone();
        // A folder in the place of the first file withstands its removal.
        let first = home.join(file_name(id, 1));
        fs::remove_file(&first).unwrap();
        fs::create_dir(&first).unwrap();
        owner.write(id, b"second").unwrap();
        assert!(owner.has(id) && owner.is_whole());
        owner.remove(id).unwrap_err();
        assert!(owner.has(id), "it still hides the first one");
        fs::remove_dir(&first).unwrap();
        fs::write(&first, b"first").unwrap();
        owner.remove(id).unwrap();
        let left: Vec<_> = fs::read_dir(&home).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "only the lock is left: {left:?}");
    }
}
