//! Processes that are killed: nobody says goodbye, and yet they are gone.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use super::*;

/// This test is the process that is killed: run by the others with a store on its input.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a process of other tests"]
async fn registers_until_it_is_killed() {
    let mut store = String::new();
    std::io::stdin().read_line(&mut store).unwrap();
    let tasks = Tasks::new();
    let discovery: Arc<dyn Discovery> = match store.trim().split_once(' ') {
        Some(("file", folder)) => {
            let config = file::Config::new(PathBuf::from(folder));
            Arc::new(File::new(config, &tasks).unwrap())
        }
        Some(("etcd", address)) => {
            let endpoints = vec![address.to_owned()];
            let config = etcd::Config { endpoints, ttl: TTL, ..etcd::Config::default() };
            Arc::new(Etcd::new(config, &tasks).unwrap())
        }
        Some(("kubernetes", url)) => {
            let config = kubernetes::Config { ttl: TTL, ..kubernetes::Config::new(url, "fleet") };
            Arc::new(Kubernetes::new(config, &tasks).unwrap())
        }
        _ => return,
    };
    let ports = 0..3;
    let leases = join_all(ports.map(|port| discovery.register(instance("fleet", port)))).await;
    for lease in &leases {
        until_held(lease.as_ref().unwrap()).await;
    }
    // Ends when the parent does, should it forget.
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    panic!("was not killed");
}

/// Starts a process that registers three instances in a store.
fn start(store: &str) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "crash::registers_until_it_is_killed", "--nocapture"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    writeln!(child.stdin.as_mut().unwrap(), "{store}").unwrap();
    child
}

/// Kills a process that registered; `check` is called when it is gone and a fourth instance,
/// which is ours, is still there.
async fn kill_one(name: &str, store: &Store, place: String, check: impl FnOnce()) {
    let tasks = Tasks::new();
    let discovery = store.open(&tasks);
    let mine = instance("fleet", 9);
    let _lease = discovery.register(mine.clone()).await.unwrap();
    let mut follower = follow(&discovery);
    let mut child = start(&place);
    follower.until("four", |follower| follower.known.len() == 4).await;
    child.kill().unwrap();
    child.wait().unwrap();
    let start = Instant::now();
    follower.until("one", |follower| follower.known.len() == 1).await;
    eprintln!("{name}: a killed process was gone after {:?}", start.elapsed());
    assert!(follower.has(&mine));
    assert_eq!(follower.count(|event| matches!(event, Event::Stale)), 0);
    check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_leaves_no_ghosts_in_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("fleet");
    let place = format!("file {}", root.display());
    let check = || assert_eq!(std::fs::read_dir(&root).unwrap().count(), 1, "only ours is left");
    kill_one("file", &Store::File(folder), place, check).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_is_forgotten_by_etcd() {
    let server = EtcdServer::start();
    let place = format!("etcd {}", server.address());
    kill_one("etcd", &Store::Etcd(server), place, || ()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_is_forgotten_in_kubernetes() {
    let server = ApiServer::start_tcp().await;
    let place = format!("kubernetes {}", server.url());
    kill_one("kubernetes", &Store::Kubernetes(server), place, || ()).await;
}
