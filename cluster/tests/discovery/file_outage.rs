//! A folder that is removed under everyone's feet, and files that nobody can understand.

use std::fs;
use std::process::Command;

use cluster::instance::MAX_RECORD_BYTES;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_removed_folder_freezes_the_view_and_is_filled_again() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("fleet");
    let store = Store::File(folder);
    let (tasks, crashed) = (Tasks::new(), Tasks::new());
    let (worker, other) = (store.open(&tasks), store.open(&crashed));
    let instances: Vec<Instance> = (0..10).map(|port| instance("fleet", port)).collect();
    let mut leases = Vec::new();
    for instance in &instances {
        leases.push(worker.register(instance.clone()).await.unwrap());
    }
    let lost = instance("fleet", 99);
    let lease_of_lost = other.register(lost.clone()).await.unwrap();
    let mut follower = follow(&worker);
    follower.until("all", |follower| follower.known.len() == 11).await;
    // A file in the folder's place keeps the owners out for a while.
    let away = root.with_extension("away");
    fs::rename(&root, &away).unwrap();
    fs::write(&root, "").unwrap();
    follower.until("stale", |follower| follower.is_stale).await;
    // One worker ends while nobody can know.
    crashed.cancel();
    drop((lease_of_lost, other));
    fs::remove_dir_all(&away).unwrap();
    follower.for_a_while(Duration::from_millis(500)).await;
    assert_eq!(follower.known.len(), 11, "the view is frozen");
    fs::remove_file(&root).unwrap();
    follower.until("the lost one is gone", |follower| !follower.has(&lost)).await;
    assert!(instances.iter().all(|instance| follower.has(instance)));
    assert!(!follower.is_stale);
    let removed = follower.count(|event| matches!(event, Event::Remove(_)));
    assert_eq!(removed, 1, "nobody who is well was removed");
    for lease in &leases {
        let mut states = lease.states();
        states.wait_for(|state| *state == LeaseState::Held).await.unwrap();
    }
    let mut late = follow(&worker);
    late.until("ten", |late| late.known.len() == 10).await;
}

#[tokio::test(start_paused = true)]
async fn a_file_that_is_removed_by_hand_comes_back() {
    let store = Store::file();
    let Store::File(folder) = &store else { unreachable!() };
    let root = folder.path().join("fleet");
    let worker = store.open(&Tasks::new());
    let instance = instance("fleet", 1);
    let _lease = worker.register(instance.clone()).await.unwrap();
    let mut follower = follow(&worker);
    follower.until("it", |follower| follower.has(&instance)).await;
    let home = fs::read_dir(&root).unwrap().next().unwrap().unwrap().path();
    for entry in fs::read_dir(home).unwrap().flatten() {
        if entry.file_name() != "lock" {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    // Whoever looks in time sees that it was gone; it is back for all.
    let mut late = follow(&worker);
    late.until("back", |late| late.has(&instance)).await;
    follower.for_a_while(Duration::from_millis(200)).await;
    assert!(follower.has(&instance));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_understood_is_left_out_and_left_alone() {
    let store = Store::file();
    let Store::File(folder) = &store else { unreachable!() };
    let root = folder.path().join("fleet");
    let worker = store.open(&Tasks::new());
    let instance = instance("fleet", 1);
    let _lease = worker.register(instance.clone()).await.unwrap();
    let home = fs::read_dir(&root).unwrap().next().unwrap().unwrap().path();
    let other = InstanceId(7);
    let json = instance.to_json().unwrap();
    fs::write(home.join(format!("{other}-{:016x}.json", 1)), &json).unwrap();
    let other = InstanceId(8);
    fs::write(home.join(format!("{other}-{:016x}.json", 1)), "{").unwrap();
    fs::write(home.join("notes.txt"), "").unwrap();
    fs::create_dir(root.join("a folder of somebody else")).unwrap();
    fs::write(root.join("a file of somebody else"), "").unwrap();
    let mut follower = follow(&worker);
    follower.until("synced", |follower| follower.is_synced).await;
    follower.for_a_while(Duration::from_millis(200)).await;
    assert_eq!(follower.log.len(), 2);
    assert!(follower.has(&instance));
    assert_eq!(fs::read_dir(&root).unwrap().count(), 3);
}

#[tokio::test(start_paused = true)]
async fn one_bad_entry_hides_nobody() {
    let store = Store::file();
    let Store::File(folder) = &store else { unreachable!() };
    let root = folder.path().join("fleet");
    let worker = store.open(&Tasks::new());
    let instances = [instance("fleet", 1), instance("fleet", 2)];
    let leases = join_all(instances.iter().map(|one| worker.register(one.clone()))).await;
    let mut follower = follow(&worker);
    follower.until("both", |follower| follower.known.len() == 2).await;
    let home = fs::read_dir(&root).unwrap().next().unwrap().unwrap().path();
    let file_of = |id: u64| format!("{}-{:016x}.json", InstanceId(id), 1);
    // A registration that cannot be read, one that is too large, and one that never ends.
    fs::create_dir(home.join(file_of(1))).unwrap();
    fs::write(home.join(file_of(2)), vec![b' '; MAX_RECORD_BYTES + 1]).unwrap();
    let pipe = Command::new("mkfifo").arg(home.join(file_of(3))).status().unwrap();
    assert!(pipe.success());
    // The folder of an owner whose lock cannot be opened.
    let foreign = root.join(InstanceId(9).to_string());
    fs::create_dir(&foreign).unwrap();
    std::os::unix::fs::symlink("lock", foreign.join("lock")).unwrap();
    let new = instance("fleet", 3);
    let _lease = worker.register(new.clone()).await.unwrap();
    follower.until("the new one", |follower| follower.has(&new)).await;
    let mut late = follow(&worker);
    late.until("synced", |late| late.is_synced).await;
    assert_eq!(late.known.len(), 3);
    drop(leases);
    follower.until("the first two are gone", |follower| follower.known.len() == 1).await;
    assert_eq!(follower.count(|event| matches!(event, Event::Stale)), 0);
    assert!(foreign.exists(), "what is not understood is left alone");
}
