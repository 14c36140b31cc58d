//! The tier on disk: a file for each block, written and read by a thread of its own.
//!
//! What lies in the folder from an earlier run is removed at the start: nobody knows which model
//! wrote it. What the thread has no time for is not kept.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use engine::{Flood, Salt, SequenceHash};
use xxhash_rust::xxh3::xxh3_64;

use super::{Found, Kept, Kind, Tier};

/// Blocks that may wait to be written or read; each is in memory meanwhile.
const QUEUED: usize = 32;

/// The ending of the files.
const ENDING: &str = "kvblock";

/// What a file begins with: the format and its version.
const MAGIC: [u8; 8] = *b"stkvblk1";

/// What the thread is asked.
#[derive(Debug)]
enum Order {
    Write(Kept),
    Read(SequenceHash),
    Remove(SequenceHash),
}

/// What the thread says: what it read, or that there is no such block.
type Answer = (SequenceHash, Option<Kept>);

/// Blocks on disk.
#[derive(Debug)]
pub struct DiskTier {
    files: HashMap<SequenceHash, File>,
    ages: BTreeMap<u64, SequenceHash>,
    /// What was asked for and what of it has come; at most [`QUEUED`].
    fetched: HashMap<SequenceHash, Option<Kept>>,
    orders: SyncSender<Order>,
    answers: Receiver<Answer>,
    clock: u64,
    used_bytes: usize,
    most_bytes: usize,
}

#[derive(Clone, Copy, Debug)]
struct File {
    age: u64,
    size_bytes: usize,
}

impl DiskTier {
    /// Starts a tier in a folder, which is made if it is not there; files of earlier runs go.
    /// Tiers that live at the same time, of whatever process, have subfolders of their own.
    ///
    /// Errors: the folder cannot be used, or the system gives no thread.
    pub fn start(folder: &Path, most_bytes: usize) -> io::Result<Self> {
        let (folder, lock) = own_folder(folder)?;
        let (orders, received) = sync_channel(QUEUED);
        // An answer for each block that is asked for, and one for each that cannot be written.
        let (answer, answers) = sync_channel(2 * QUEUED);
        std::thread::Builder::new().name("kv-disk".into()).spawn(move || {
            // Others may have the folder when the last order is done.
            let _lock = lock;
            let mut failures = Flood::default();
            for order in received {
                serve(&folder, order, &answer, &mut failures);
            }
            // Only this engine could read what it kept.
            if let Err(error) = empty(&folder) {
                tracing::warn!(%error, folder = %folder.display(), "KV blocks were not removed");
            }
        })?;
        let (files, ages, fetched) = Default::default();
        Ok(Self { files, ages, fetched, orders, answers, clock: 0, used_bytes: 0, most_bytes })
    }

    /// Takes note of what the thread said.
    fn listen(&mut self) {
        while let Ok(answer) = self.answers.try_recv() {
            self.note(answer);
        }
    }

    fn note(&mut self, (name, block): Answer) {
        if block.is_none() {
            self.forget(name);
            self.fetched.remove(&name);
        } else if let Some(place) = self.fetched.get_mut(&name) {
            *place = block;
        }
    }

    fn forget(&mut self, name: SequenceHash) {
        if let Some(file) = self.files.remove(&name) {
            self.ages.remove(&file.age);
            self.used_bytes -= file.size_bytes;
        }
    }

    /// Makes a file the most recently used one.
    fn touch(&mut self, name: SequenceHash) {
        self.clock += 1;
        if let Some(file) = self.files.get_mut(&name) {
            self.ages.remove(&file.age);
            file.age = self.clock;
            self.ages.insert(self.clock, name);
        }
    }
}

impl Tier for DiskTier {
    /// Returns nothing: there is no tier below.
    fn put(&mut self, block: Kept) -> Vec<Kept> {
        self.listen();
        let (name, size_bytes) = (block.name, block.size_bytes());
        if self.files.contains_key(&name) {
            self.touch(name);
            return Vec::new();
        }
        while self.used_bytes + size_bytes > self.most_bytes {
            let Some((_, &oldest)) = self.ages.first_key_value() else {
                return Vec::new();
            };
            if self.orders.try_send(Order::Remove(oldest)).is_err() {
                return Vec::new();
            }
            self.forget(oldest);
        }
        if self.orders.try_send(Order::Write(block)).is_ok() {
            self.clock += 1;
            self.used_bytes += size_bytes;
            self.ages.insert(self.clock, name);
            self.files.insert(name, File { age: self.clock, size_bytes });
        }
        Vec::new()
    }

    /// The file stays: the block need not be written again.
    fn take(&mut self, name: SequenceHash) -> Found {
        self.listen();
        match self.fetched.get(&name).map(Option::is_some) {
            Some(true) => self.fetched.remove(&name).flatten().map_or(Found::Absent, Found::Here),
            Some(false) => Found::Coming,
            None if self.fetch(name) => Found::Coming,
            None => Found::Absent,
        }
    }

    fn fetch(&mut self, name: SequenceHash) -> bool {
        if self.fetched.contains_key(&name) {
            return true;
        }
        if !self.files.contains_key(&name) {
            return false;
        }
        if self.fetched.len() >= QUEUED {
            // What came and was not wanted any more makes room.
            self.fetched.retain(|_, block| block.is_none());
        }
        let is_queued =
            self.fetched.len() < QUEUED && self.orders.try_send(Order::Read(name)).is_ok();
        if is_queued {
            self.touch(name);
            self.fetched.insert(name, None);
        }
        is_queued
    }

    fn wait(&mut self, most: Duration) {
        if !self.fetched.values().any(Option::is_none) {
            return;
        }
        match self.answers.recv_timeout(most) {
            Ok(answer) => self.note(answer),
            Err(RecvTimeoutError::Timeout) => {}
            // The thread is gone, and nothing will come any more.
            Err(RecvTimeoutError::Disconnected) => {
                self.fetched.clear();
                self.files.clear();
                self.ages.clear();
                self.used_bytes = 0;
            }
        }
    }

    fn kind(&self) -> Kind {
        Kind::Disk
    }

    fn used_bytes(&self) -> usize {
        self.used_bytes
    }
}

/// Returns the first subfolder that nobody uses, and what keeps others out of it. All those that
/// nobody uses are emptied.
fn own_folder(folder: &Path) -> io::Result<(PathBuf, fs::File)> {
    let mut own = None;
    for number in 0.. {
        let place = folder.join(number.to_string());
        if own.is_some() && !place.is_dir() {
            break;
        }
        fs::create_dir_all(&place)?;
        let lock = fs::File::create(place.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => continue,
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
        empty(&place)?;
        own.get_or_insert((place, lock));
    }
    own.ok_or_else(|| io::Error::other("all subfolders are in use"))
}

/// Removes the blocks of a subfolder.
fn empty(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == ENDING) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Does what is asked; what fails is as if it had never been kept.
fn serve(folder: &Path, order: Order, answers: &SyncSender<Answer>, failures: &mut Flood) {
    match order {
        Order::Write(block) => {
            let path = path(folder, block.name);
            if let Err(error) = write(&path, &block) {
                // A part of a block would take space that nobody counts.
                let _ = fs::remove_file(&path);
                if let Some(untold) = failures.admit() {
                    let folder = folder.display();
                    tracing::warn!(%error, untold, %folder, "a KV block was not written");
                }
                // If nobody takes the answers, reading the block fails as well.
                let _ = answers.try_send((block.name, None));
            }
        }
        Order::Read(name) => {
            let block = fs::read(path(folder, name)).ok().and_then(|bytes| parse(name, &bytes));
            let _ = answers.send((name, block));
        }
        Order::Remove(name) => {
            if let Err(error) = fs::remove_file(path(folder, name)) {
                tracing::debug!(%error, "a KV block was not removed");
            }
        }
    }
}

fn path(folder: &Path, name: SequenceHash) -> PathBuf {
    folder.join(format!("{:016x}.{ENDING}", name.0))
}

/// Writes a block: checksum of the rest, format, salt, count of tokens, tokens, bytes.
fn write(path: &Path, block: &Kept) -> io::Result<()> {
    let mut bytes = vec![0; 8];
    bytes.extend(MAGIC);
    bytes.extend(block.salt.0.to_le_bytes());
    bytes.extend((block.tokens.len() as u32).to_le_bytes());
    bytes.extend(block.tokens.iter().flat_map(|token| token.to_le_bytes()));
    bytes.extend_from_slice(&block.bytes);
    let checksum = xxh3_64(&bytes[8..]);
    bytes[..8].copy_from_slice(&checksum.to_le_bytes());
    // The tokens are what somebody wrote: nobody else may read them.
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)?.write_all(&bytes)
}

/// Reads what [`write()`] wrote; none if a bit of it is different.
fn parse(name: SequenceHash, bytes: &[u8]) -> Option<Kept> {
    let (checksum, rest) = bytes.split_first_chunk()?;
    if u64::from_le_bytes(*checksum) != xxh3_64(rest) {
        return None;
    }
    let rest = rest.strip_prefix(&MAGIC)?;
    let (salt, rest) = rest.split_first_chunk()?;
    let (count, rest) = rest.split_first_chunk()?;
    let count = u32::from_le_bytes(*count) as usize;
    let (tokens, bytes) = rest.split_at_checked(count.checked_mul(4)?)?;
    Some(Kept {
        name,
        salt: Salt(u64::from_le_bytes(*salt)),
        tokens: tokens.as_chunks().0.iter().map(|token| u32::from_le_bytes(*token)).collect(),
        bytes: bytes.to_vec(),
    })
}
