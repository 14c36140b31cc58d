//! The folder of the Unix sockets by which frontends call workers of the same user on the same
//! machine, which costs less than TCP does.
//!
//! A worker's socket has its number as name. A registration only says that there is one: where it
//! is everybody knows by themselves, so that nobody can be sent to other sockets of the machine.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use cluster::instance::InstanceId;
use tokio::net::{UnixListener, UnixStream};

/// The end of the sockets' names.
const SUFFIX: &str = ".sock";

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
        let path = self.path(id);
        let listener = UnixListener::bind(&path)?;
        Ok(Socket { listener, file: File(path) })
    }

    /// Returns a worker's socket, if the folder is this user's alone.
    pub(super) fn find(&self, id: InstanceId) -> Option<PathBuf> {
        is_ours(&self.0).ok().map(|()| self.path(id))
    }

    fn path(&self, id: InstanceId) -> PathBuf {
        self.0.join(format!("{id}{SUFFIX}"))
    }

    async fn sweep(&self) -> io::Result<()> {
        let is_socket = |path: &PathBuf| path.to_string_lossy().ends_with(SUFFIX);
        let found = std::fs::read_dir(&self.0)?.take(MAX_LOOKS).filter_map(Result::ok);
        for path in found.map(|entry| entry.path()).filter(is_socket) {
            let refused = UnixStream::connect(&path).await.err();
            if refused.is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused) {
                drop(File(path));
            }
        }
        Ok(())
    }
}

/// Checks that nobody else can put anything into a folder.
fn is_ours(folder: &Path) -> io::Result<()> {
    let found = std::fs::symlink_metadata(folder)?;
    let is_own = found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o077 == 0;
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

    use super::*;

    #[tokio::test]
    async fn sockets_of_the_dead_go_and_those_of_the_living_stay() {
        let folder = tempfile::tempdir().unwrap();
        let sockets = Sockets::new(folder.path().join("a/b"));
        let [dead, living, new] = std::array::from_fn(|_| InstanceId::random());
        assert_eq!(sockets.find(living), None, "there is no folder yet");
        let alive = sockets.listen(living).await.unwrap();
        // As a process leaves it that was killed.
        drop(std::os::unix::net::UnixListener::bind(sockets.path(dead)).unwrap());
        let other = sockets.0.join("notes.txt");
        std::fs::write(&other, "kept").unwrap();
        let own = sockets.listen(new).await.unwrap();
        assert!(!sockets.path(dead).exists() && other.exists());
        let found = sockets.find(living).unwrap();
        let (accepted, connected) =
            tokio::join!(alive.listener.accept(), UnixStream::connect(&found));
        assert!(accepted.is_ok() && connected.is_ok());
        drop(own);
        assert!(!sockets.path(new).exists() && sockets.path(living).exists());
    }

    #[tokio::test]
    async fn a_folder_that_others_may_open_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let sockets = Sockets::new(folder.path().join("own"));
        let id = InstanceId::random();
        drop(sockets.listen(id).await.unwrap());
        assert!(sockets.find(id).is_some());
        std::fs::set_permissions(&sockets.0, PermissionsExt::from_mode(0o711)).unwrap();
        let error = sockets.listen(id).await.err().unwrap();
        assert!(error.to_string().contains("0700"), "{error}");
        assert_eq!(sockets.find(id), None);
        std::fs::set_permissions(&sockets.0, PermissionsExt::from_mode(0o700)).unwrap();
        // A link to a folder is none, wherever it leads.
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&sockets.0, &link).unwrap();
        assert!(sockets.find(id).is_some() && Sockets::new(link).find(id).is_none());
    }
}
