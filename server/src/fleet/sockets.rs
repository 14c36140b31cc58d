//! The folder of the Unix sockets by which frontends call workers of the same user on the same
//! machine, which costs less than TCP does.
//!
//! A worker's socket has its number as name. A registration only says that there is one: where it
//! is everybody knows by themselves, so that nobody can be sent to other sockets of the machine.

use std::fs::{DirBuilder, DirEntry};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cluster::instance::InstanceId;
use cluster::request::Local;
use tokio::net::{UnixListener, UnixStream};

/// The end of the sockets' names.
const SUFFIX: &str = ".sock";

/// The end of the name of one that takes no connections yet, as long as the other one at least.
const BEGUN: &str = ".begun";

/// The age from which on one that has only begun is a dead worker's.
const BEGUN_AGE: Duration = Duration::from_secs(60);

/// Most old sockets that are looked at when a worker starts.
const MAX_LOOKS: usize = 1024;

/// The folder, which need not be there.
#[derive(Clone, Debug)]
pub(super) struct Sockets(PathBuf);

/// A worker's socket, which is taken away with this.
pub(super) struct Socket {
    pub(super) listener: UnixListener,
    pub(super) file: File,
}

/// A file that goes with its process.
pub(super) struct File(PathBuf);

impl Drop for File {
    fn drop(&mut self) {
        // It may be gone already.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Sockets {
    pub(super) fn new(folder: impl Into<PathBuf>) -> Self {
        Self(folder.into())
    }

    /// Opens a worker's socket, and takes those away that dead workers have left.
    ///
    /// Errors: the folder cannot be made, or others may write to it; its path is too long.
    pub(super) async fn listen(&self, id: InstanceId) -> io::Result<Socket> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        is_ours(&self.0)?;
        self.sweep().await?;
        // It has its name when it takes connections: before that it looks like a dead worker's.
        let begun = self.0.join(format!("{id}{BEGUN}"));
        let listener = UnixListener::bind(&begun)?;
        let mut file = File(begun);
        std::fs::rename(&file.0, self.path(id))?;
        file.0 = self.path(id);
        Ok(Socket { listener, file })
    }

    /// Returns the way to a worker's socket, if the folder is this user's alone; `address` is the
    /// worker's `HOST:PORT`.
    pub(super) fn find(&self, id: InstanceId, address: &str) -> Option<Local> {
        is_ours(&self.0).ok()?;
        Some(Local::new(self.path(id), user(), address))
    }

    fn path(&self, id: InstanceId) -> PathBuf {
        self.0.join(format!("{id}{SUFFIX}"))
    }

    async fn sweep(&self) -> io::Result<()> {
        let found = std::fs::read_dir(&self.0)?.take(MAX_LOOKS).filter_map(Result::ok);
        for path in found.filter(is_workers).map(|entry| entry.path()) {
            let refused = UnixStream::connect(&path).await.err();
            if refused.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
                drop(File(path));
            }
        }
        Ok(())
    }
}

/// Returns whether what was found is a worker's socket, and no living one's that has just begun.
fn is_workers(found: &DirEntry) -> bool {
    let name = found.file_name();
    let name = name.to_string_lossy();
    let is_named =
        |suffix| name.strip_suffix(suffix).is_some_and(|id: &str| id.parse::<InstanceId>().is_ok());
    let Ok(about) = found.metadata() else { return false };
    let age = || about.modified().ok().and_then(|at| at.elapsed().ok()).unwrap_or_default();
    about.file_type().is_socket() && (is_named(SUFFIX) || is_named(BEGUN) && age() > BEGUN_AGE)
}

/// Returns the number of the user whose process this is.
fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Checks that nobody else can put anything into a folder, as far as it is itself that says so.
fn is_ours(folder: &Path) -> io::Result<()> {
    let found = std::fs::symlink_metadata(folder)?;
    let is_own = found.uid() == user() && found.mode() & 0o077 == 0;
    if found.is_dir() && is_own {
        return Ok(());
    }
    let folder = folder.display();
    let text = format!("`{folder}` is no folder that only its owner, this user, may open (0700)");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use cluster::request::Connector;

    use super::*;

    const ADDRESS: &str = "127.0.0.1:1";

    #[tokio::test]
    async fn sockets_of_the_dead_go_and_those_of_the_living_stay() {
        let folder = tempfile::tempdir().unwrap();
        let sockets = Sockets::new(folder.path().join("a/b"));
        let [dead, living, new] = std::array::from_fn(|_| InstanceId::random());
        assert!(sockets.find(living, ADDRESS).is_none(), "there is no folder yet");
        let alive = sockets.listen(living).await.unwrap();
        // As a process leaves it that was killed.
        let leave = |name: String| {
            let path = sockets.0.join(name);
            drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
            path
        };
        let dead = leave(format!("{dead}.sock"));
        // Nobody's, no socket, and one that may take connections in a moment.
        let kept = [leave("others.sock".into()), leave(format!("{}.begun", InstanceId::random()))];
        let file = sockets.path(InstanceId::random());
        std::fs::write(&file, "kept").unwrap();
        let own = sockets.listen(new).await.unwrap();
        assert!(!dead.exists() && file.exists() && kept.iter().all(|path| path.exists()));
        let found = sockets.find(living, ADDRESS).unwrap();
        let (accepted, connected) = tokio::join!(alive.listener.accept(), found.connect());
        assert!(accepted.is_ok() && connected.is_ok());
        let strangers = Local::new(sockets.path(living), user() + 1, ADDRESS);
        let refused = strangers.connect().await.err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
        drop(own);
        assert!(!sockets.path(new).exists() && sockets.path(living).exists());
    }

    #[tokio::test]
    async fn a_folder_that_others_may_open_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let sockets = Sockets::new(folder.path().join("own"));
        let id = InstanceId::random();
        drop(sockets.listen(id).await.unwrap());
        let is_found = |sockets: &Sockets| sockets.find(id, ADDRESS).is_some();
        assert!(is_found(&sockets));
        std::fs::set_permissions(&sockets.0, PermissionsExt::from_mode(0o711)).unwrap();
        let error = sockets.listen(id).await.err().unwrap();
        assert!(error.to_string().contains("0700"), "{error}");
        assert!(!is_found(&sockets));
        std::fs::set_permissions(&sockets.0, PermissionsExt::from_mode(0o700)).unwrap();
        // A link to a folder is none, wherever it leads.
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&sockets.0, &link).unwrap();
        assert!(is_found(&sockets) && !is_found(&Sockets::new(link)));
    }
}
