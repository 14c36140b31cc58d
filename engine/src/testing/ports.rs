//! Ports for the servers that tests start: no other test of this machine is given the same one.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpListener;
use std::sync::{Mutex, PoisonError};

/// Ports that Linux by default gives nobody by itself, neither to who listens nor to who connects, so
/// that one stays free while its server is down.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// The folder, in the system's one for temporary files, of a lock file for each port.
const LOCKS: &str = "stator-test-ports";

/// The ports that this process was given, each with the file that keeps other processes from it.
static GIVEN: Mutex<BTreeMap<u16, File>> = Mutex::new(BTreeMap::new());

/// Returns a TCP port of 127.0.0.1 that nobody listens at. It belongs to this process until it ends;
/// the tests in Python take theirs from the same range by the same files.
///
/// # Panics
/// If all ports are taken, or a file cannot be made in the system's folder for temporary files.
pub fn free_port() -> u16 {
    let folder = std::env::temp_dir().join(LOCKS);
    std::fs::create_dir_all(&folder).expect("a folder for lock files can be made");
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    // Processes begin at different places.
    let first = std::process::id() as usize * 64 % PORTS.len();
    for port in PORTS.cycle().skip(first).take(PORTS.len()) {
        if given.contains_key(&port) {
            continue;
        }
        let file = File::create(folder.join(port.to_string())).expect("a lock file can be made");
        if file.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            given.insert(port, file);
            return port;
        }
    }
    panic!("all ports from {} on are taken", PORTS.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_once() {
        let ports: Vec<u16> = (0..10).map(|_| free_port()).collect();
        let listeners: Vec<_> =
            ports.iter().map(|port| TcpListener::bind(("127.0.0.1", *port)).unwrap()).collect();
        let next = free_port();
        assert!(!ports.contains(&next));
        drop(listeners);
        let path = std::env::temp_dir().join(LOCKS).join(next.to_string());
        assert!(File::create(path).unwrap().try_lock().is_err(), "other processes see who has it");
    }
}
