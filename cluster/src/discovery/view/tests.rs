//! Views: what a watcher hears equals what the store holds, whatever happened between.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const GRACE: Duration = Duration::from_secs(10);

fn instance(id: u64, port: u16) -> Arc<Instance> {
    let namespace = if id.is_multiple_of(2) { "even" } else { "odd" };
    let namespace = namespace.parse().unwrap();
    let mut instance = Instance::new(namespace, format!("grpc://h:{port}"));
    instance.id = InstanceId(id);
    Arc::new(instance)
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn the_first_listing_ends_with_synced_and_only_the_first() {
    let mut view = View::new(Query::All, GRACE);
    let events = view.apply(Change::Listing(vec![instance(1, 1)]), at(0));
    assert_eq!(events, [Event::Put(instance(1, 1)), Event::Synced]);
    assert!(view.apply(Change::Listing(vec![instance(1, 1)]), at(1)).is_empty());
    let events = view.apply(Change::Listing(vec![instance(1, 2), instance(2, 1)]), at(2));
    assert_eq!(events, [Event::Put(instance(1, 2)), Event::Put(instance(2, 1))]);
    let events = view.apply(Change::Listing(vec![instance(2, 1)]), at(3));
    assert_eq!(events, [Event::Remove(InstanceId(1))]);
}

#[test]
fn two_of_one_number_are_one_who_does_not_flap() {
    let mut view = View::new(Query::All, GRACE);
    for now in 0..3 {
        let listing = Change::Listing(vec![instance(1, 1), instance(1, 2)]);
        let events = view.apply(listing, at(now));
        let expected = [Event::Put(instance(1, 2)), Event::Synced];
        assert_eq!(events, expected[..if now == 0 { 2 } else { 0 }]);
    }
}

#[test]
fn an_outage_freezes_the_view_and_removals_wait_for_the_grace() {
    let mut view = View::new(Query::All, GRACE);
    view.apply(Change::Listing(vec![instance(1, 1), instance(2, 1), instance(3, 1)]), at(0));
    assert_eq!(view.lose(), [Event::Stale]);
    assert!(view.lose().is_empty() && view.expire(at(99)).is_empty() && view.due().is_none());
    // The store comes back empty: everybody stays for now.
    assert_eq!(view.apply(Change::Listing(vec![]), at(100)), [Event::Fresh]);
    assert_eq!(view.due(), Some(at(110)));
    // One registers again, another one's lease is said to have ended.
    let back = Change::Changes(vec![Difference::Put(instance(1, 1))]);
    assert!(view.apply(back, at(101)).is_empty());
    let ended = Change::Changes(vec![Difference::Remove(InstanceId(1))]);
    assert!(view.apply(ended, at(102)).is_empty());
    let back = Change::Changes(vec![Difference::Put(instance(1, 1))]);
    assert!(view.apply(back, at(103)).is_empty());
    let gone = [Event::Remove(InstanceId(2)), Event::Remove(InstanceId(3))];
    assert!(view.expire(at(109)).is_empty());
    assert_eq!(view.expire(at(110)), gone);
    // Afterwards removals are told at once.
    let ended = Change::Changes(vec![Difference::Remove(InstanceId(1))]);
    assert_eq!(view.apply(ended, at(111)), [Event::Remove(InstanceId(1))]);
}

#[test]
fn a_second_outage_gives_the_grace_anew() {
    let mut view = View::new(Query::All, GRACE);
    view.apply(Change::Listing(vec![instance(1, 1)]), at(0));
    view.lose();
    view.apply(Change::Listing(vec![]), at(100));
    view.lose();
    view.apply(Change::Listing(vec![]), at(200));
    assert!(view.expire(at(205)).is_empty());
    assert_eq!(view.expire(at(210)), [Event::Remove(InstanceId(1))]);
}

#[test]
fn a_store_that_was_never_reached_is_stale_before_it_is_synced() {
    let mut view = View::new(Query::All, GRACE);
    assert_eq!(view.lose(), [Event::Stale]);
    let events = view.apply(Change::Listing(vec![instance(1, 1)]), at(1));
    assert_eq!(events, [Event::Put(instance(1, 1)), Event::Synced, Event::Fresh]);
}

#[derive(Clone, Debug)]
enum Step {
    List(BTreeSet<u64>),
    Put(u64, u16),
    Remove(u64),
    Lose,
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        prop::collection::btree_set(0_u64..6, 0..6).prop_map(Step::List),
        (0_u64..6, 0_u16..3).prop_map(|(id, port)| Step::Put(id, port)),
        (0_u64..6).prop_map(Step::Remove),
        Just(Step::Lose),
        (0_u64..15).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..40)
}

proptest! {
    /// A reader that folds the events has the store's content once the grace has passed, is
    /// told nothing twice, and loses nobody while the store is away.
    #[test]
    fn who_follows_the_events_has_the_store(steps in steps()) {
        let query = Query::prefix("even").unwrap();
        let mut view = View::new(query.clone(), GRACE);
        let mut store: BTreeMap<u64, Arc<Instance>> = BTreeMap::new();
        let mut told: BTreeMap<u64, Arc<Instance>> = BTreeMap::new();
        let (mut now, mut is_away, mut synced) = (Duration::ZERO, true, 0);
        let steps = steps.into_iter().chain([Step::List((0..3).collect()), Step::Wait(10)]);
        for step in steps {
            let events = match step {
                Step::List(ids) => {
                    store = ids.into_iter().map(|id| (id, instance(id, 9))).collect();
                    is_away = false;
                    view.apply(Change::Listing(store.values().cloned().collect()), now)
                }
                Step::Put(id, port) if !is_away => {
                    store.insert(id, instance(id, port));
                    let put = Difference::Put(instance(id, port));
                    view.apply(Change::Changes(vec![put]), now)
                }
                Step::Remove(id) if !is_away => {
                    store.remove(&id);
                    view.apply(Change::Changes(vec![Difference::Remove(InstanceId(id))]), now)
                }
                Step::Put(..) | Step::Remove(_) => continue,
                Step::Lose => {
                    is_away = true;
                    view.lose()
                }
                Step::Wait(seconds) => {
                    now += Duration::from_secs(seconds);
                    view.expire(now)
                }
            };
            for event in events {
                match event {
                    Event::Put(instance) => {
                        let id = instance.id.0;
                        let before = told.insert(id, instance.clone());
                        prop_assert_ne!(before.as_ref(), Some(&instance), "told twice");
                    }
                    Event::Remove(id) => {
                        prop_assert!(!is_away, "{} was removed while the store was away", id);
                        prop_assert!(told.remove(&id.0).is_some());
                    }
                    Event::Synced => synced += 1,
                    Event::Stale | Event::Fresh => {}
                }
            }
        }
        store.retain(|_, instance| query.selects(&instance.namespace));
        prop_assert_eq!(told, store);
        prop_assert_eq!(synced, 1);
    }
}
