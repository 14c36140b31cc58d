//! The live set: cases for each rule, and laws that hold after any history.

use proptest::prelude::*;

use super::*;
use crate::card::{Input, Kind, Role};

fn card(name: &str, context_length: u32) -> Card {
    Card { context_length, ..Card::new(name, Kind::Text, Input::Token) }
}

fn instance(id: u64, cards: Vec<Card>) -> Instance {
    let namespace = ["blue", "green"][id as usize % 2].parse().unwrap();
    let mut instance = Instance::new(namespace, format!("grpc://h:{id}"));
    (instance.id, instance.cards, instance.started_unix_ms) = (InstanceId(id), cards, 100 + id);
    instance
}

fn put(core: &mut Core, instance: Instance) -> Vec<Change> {
    core.apply(Event::Put(Arc::new(instance)))
}

fn members(snapshot: &Snapshot, name: &str) -> Vec<u64> {
    let model = snapshot.models.get(name);
    model.into_iter().flat_map(|model| &model.members).map(|member| member.instance.id.0).collect()
}

fn synced() -> Core {
    let mut core = Core::new(Config::default());
    assert_eq!(core.apply(Event::Synced), [Change::Synced]);
    core
}

fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[test]
fn the_first_card_has_the_name_and_another_one_is_a_conflict_that_says_why() {
    let mut core = synced();
    let first = instance(5, vec![card("m", 1)]);
    let joined = put(&mut core, first.clone());
    assert_eq!(joined, [Change::Joined(Arc::new(first)), Change::ModelAdded("m".into())]);
    let changes = put(&mut core, instance(2, vec![card("m", 2), card("n", 1)]));
    let conflict = Conflict {
        name: "m".into(),
        instance: InstanceId(2),
        namespace: "blue".parse().unwrap(),
        holder: InstanceId(5),
        fields: vec!["context_length"],
    };
    assert_eq!(changes[1..], [Change::Conflict(conflict.clone()), Change::ModelAdded("n".into())]);
    let text = conflict.to_string();
    assert!(text.contains("`m`") && text.contains("`context_length`"), "{text}");
    // Another worker with the first card joins, of another namespace; the first one leaves.
    put(&mut core, instance(8, vec![card("m", 1)]));
    core.apply(Event::Remove(InstanceId(5)));
    let snapshot = core.snapshot();
    assert_eq!((members(&snapshot, "m"), members(&snapshot, "n")), (vec![8], vec![2]));
    assert_eq!(snapshot.conflicts.len(), 1);
    // With the last of them the name is free for the other card.
    let changes = core.apply(Event::Remove(InstanceId(8)));
    let ended = Conflict { holder: InstanceId(8), ..conflict };
    assert_eq!(changes, [Change::Left(InstanceId(8)), Change::ConflictEnded(ended)]);
    assert_eq!(members(&core.snapshot(), "m"), [2]);
}

#[test]
fn before_it_is_synced_nothing_is_served_and_then_the_oldest_wins() {
    let mut core = Core::new(Config::default());
    put(&mut core, instance(9, vec![card("m", 9)]));
    put(&mut core, instance(3, vec![card("m", 3)]));
    let snapshot = core.snapshot();
    assert!(snapshot.models.is_empty() && !snapshot.is_synced);
    core.apply(Event::Synced);
    assert_eq!(members(&core.snapshot(), "m"), [3]);
}

#[test]
fn a_suspect_is_not_called_until_a_probe_or_discovery_says_so() {
    let mut core = synced();
    put(&mut core, instance(1, vec![card("m", 1)]));
    let id = InstanceId(1);
    assert_eq!(core.suspect(id, at(0)), [Change::Suspected(id)]);
    assert!(core.suspect(id, at(0)).is_empty() && core.suspect(InstanceId(7), at(0)).is_empty());
    let snapshot = core.snapshot();
    assert!(members(&snapshot, "m").is_empty() && !snapshot.models["m"].is_ready());
    // Probes at 200 ms, and 400 ms after the first one failed.
    assert_eq!(core.next_due(), Some(at(200)));
    assert!(core.take_due(at(199), 9).is_empty());
    assert!(core.take_due(at(200), 0).is_empty());
    assert_eq!(core.take_due(at(200), 9).len(), 1);
    assert!(core.take_due(at(201), 9).is_empty());
    assert!(core.probed(id, false, (at(200), at(210))).is_empty());
    assert_eq!(core.next_due(), Some(at(610)));
    assert_eq!(core.probed(id, true, (at(650), at(700))), [Change::Cleared(id)]);
    assert!(core.next_due().is_none() && core.snapshot().models["m"].is_ready());
    // A suspicion does not outlive a new registration, and keeps the name meanwhile.
    core.suspect(id, at(800));
    put(&mut core, instance(2, vec![card("m", 2)]));
    assert_eq!(core.snapshot().conflicts.len(), 1);
    assert_eq!(put(&mut core, instance(1, vec![card("m", 1)]))[0], Change::Cleared(id));
    assert_eq!(members(&core.snapshot(), "m"), [1]);
}

#[test]
fn a_probe_says_nothing_of_a_connection_that_died_after_it_began() {
    let mut core = synced();
    put(&mut core, instance(1, vec![card("m", 1)]));
    let id = InstanceId(1);
    core.suspect(id, at(0));
    assert_eq!(core.take_due(at(200), 9).len(), 1);
    assert!(core.suspect(id, at(250)).is_empty());
    assert!(core.probed(id, true, (at(200), at(300))).is_empty());
    assert_eq!(core.next_due(), Some(at(500)));
    assert_eq!(core.probed(id, true, (at(500), at(510))), [Change::Cleared(id)]);
}

#[test]
fn roles_and_draining_decide_who_takes_new_work() {
    let mut core = synced();
    let of = |role| vec![Card { role, ..card("m", 1) }];
    put(&mut core, instance(1, of(Role::Prefill)));
    // One of either role can do all of the work.
    assert!(core.snapshot().models["m"].is_ready());
    put(&mut core, instance(2, of(Role::Decode)));
    let model = &core.snapshot().models["m"];
    assert!(model.is_ready() && model.accepting(Role::Aggregated).next().is_none());
    assert_eq!(model.accepting_any().count(), 2);
    put(&mut core, Instance { is_draining: true, ..instance(2, of(Role::Decode)) });
    let model = &core.snapshot().models["m"];
    assert!(model.is_ready() && model.accepting(Role::Decode).next().is_none());
    put(&mut core, Instance { is_draining: true, ..instance(1, of(Role::Prefill)) });
    let model = &core.snapshot().models["m"];
    assert!(!model.is_ready() && model.members.len() == 2);
}

#[test]
fn an_alias_leads_to_its_model_and_is_a_name_like_any_other() {
    let mut core = synced();
    let with = |name: &str, alias: &str| Card { aliases: vec![alias.into()], ..card(name, 1) };
    put(&mut core, instance(1, vec![with("long", "short")]));
    put(&mut core, instance(2, vec![with("other", "short")]));
    put(&mut core, instance(3, vec![card("short", 1)]));
    let snapshot = core.snapshot();
    assert_eq!(snapshot.model("short").unwrap().card.name, "long");
    assert_eq!(snapshot.model("other").unwrap().card.name, "other");
    assert!(snapshot.model("none").is_none() && !snapshot.has(InstanceId(3)));
    let losers: Vec<u64> = snapshot.conflicts.iter().map(|conflict| conflict.instance.0).collect();
    assert_eq!(losers, [2, 3]);
    // The card `long` of 4 does not have its name, so its alias would lead to another model.
    put(&mut core, instance(4, vec![with("long", "brief")]));
    assert!(core.snapshot().model("brief").is_none());
    // It keeps nobody else from having it, and gets it when nobody else wants it any more.
    put(&mut core, instance(5, vec![card("brief", 1)]));
    assert_eq!(members(&core.snapshot(), "brief"), [5]);
    core.apply(Event::Remove(InstanceId(1)));
    let snapshot = core.snapshot();
    assert_eq!(members(&snapshot, "long"), [4]);
    assert_eq!(members(&snapshot, "brief"), [5], "a name that is served stays");
    assert_eq!(snapshot.model("short").unwrap().card.name, "other", "the oldest who wants it");
    core.apply(Event::Remove(InstanceId(5)));
    assert_eq!(core.snapshot().model("brief").unwrap().card.name, "long");
}

#[test]
fn an_alias_is_free_again_when_its_card_loses_its_own_name() {
    let mut core = synced();
    let with = |size| Card { aliases: vec!["short".into()], ..card("long", size) };
    put(&mut core, instance(1, vec![with(1)]));
    put(&mut core, instance(2, vec![card("long", 2)]));
    put(&mut core, instance(3, vec![card("short", 1)]));
    assert_eq!(core.snapshot().model("short").unwrap().card.name, "long");
    put(&mut core, Instance { is_draining: true, ..instance(1, vec![with(1)]) });
    let snapshot = core.snapshot();
    assert_eq!((members(&snapshot, "long"), members(&snapshot, "short")), (vec![2], vec![3]));
}

#[test]
fn a_group_that_drains_leaves_its_name_to_one_that_works() {
    let mut core = synced();
    put(&mut core, instance(1, vec![card("m", 1)]));
    put(&mut core, instance(2, vec![card("m", 1)]));
    put(&mut core, instance(3, vec![card("m", 2)]));
    let draining = |id| Instance { is_draining: true, ..instance(id, vec![card("m", 1)]) };
    put(&mut core, draining(1));
    assert_eq!(members(&core.snapshot(), "m"), [1, 2], "2 works on");
    put(&mut core, draining(2));
    assert_eq!(members(&core.snapshot(), "m"), [3]);
    // Nobody takes it back, and without others who want it a name stays with who drains.
    put(&mut core, instance(1, vec![card("m", 1)]));
    assert_eq!(members(&core.snapshot(), "m"), [3]);
    core.apply(Event::Remove(InstanceId(3)));
    put(&mut core, draining(1));
    assert_eq!(members(&core.snapshot(), "m"), [1, 2]);
}

#[test]
fn who_does_not_tell_its_age_is_the_youngest() {
    let mut core = Core::new(Config::default());
    put(&mut core, Instance { started_unix_ms: 0, ..instance(1, vec![card("m", 1)]) });
    put(&mut core, instance(2, vec![card("m", 2)]));
    core.apply(Event::Synced);
    assert_eq!(members(&core.snapshot(), "m"), [2]);
}

#[test]
fn a_lost_store_changes_nothing_but_the_word_for_it() {
    let mut core = synced();
    put(&mut core, instance(1, vec![card("m", 1)]));
    let before = core.snapshot();
    assert_eq!(core.apply(Event::Stale), [Change::Stale]);
    assert!(core.apply(Event::Stale).is_empty());
    let stale = core.snapshot();
    assert!(stale.is_stale);
    assert_eq!(stale.models, before.models);
    // A dead connection is noticed all the same.
    core.suspect(InstanceId(1), at(0));
    assert!(members(&core.snapshot(), "m").is_empty());
    assert_eq!(core.apply(Event::Fresh), [Change::Fresh]);
}

#[derive(Clone, Debug)]
enum Step {
    Put(Instance),
    Remove(u64),
    Suspect(u64),
    Probed(u64, bool),
    Store(Event),
}

fn any_instance() -> impl Strategy<Value = Instance> {
    let alias = prop::collection::vec(prop::sample::select(vec!["a", "b", "x"]), 0..2);
    let cards =
        prop::collection::btree_map(prop::sample::select(vec!["a", "b"]), (1_u32..3, alias), 0..3);
    let made =
        (0_u64..5, cards, 0_u64..3, any::<bool>()).prop_map(|(id, cards, age, is_draining)| {
            let cards = cards.into_iter().map(|(name, (size, aliases))| Card {
                aliases: aliases.into_iter().map(str::to_owned).collect(),
                ..card(name, size)
            });
            let cards = cards.collect();
            Instance { started_unix_ms: age, is_draining, ..instance(id, cards) }
        });
    made.prop_filter("a name stands once", |instance| instance.check().is_ok())
}

fn any_step() -> impl Strategy<Value = Step> {
    let store = prop::sample::select(vec![Event::Synced, Event::Stale, Event::Fresh]);
    prop_oneof![
        4 => any_instance().prop_map(Step::Put),
        2 => (0_u64..5).prop_map(Step::Remove),
        2 => (0_u64..5).prop_map(Step::Suspect),
        1 => (0_u64..5, any::<bool>()).prop_map(|(id, is_well)| Step::Probed(id, is_well)),
        1 => store.prop_map(Step::Store),
    ]
}

/// What someone knows who only hears the changes.
#[derive(Default)]
struct Listener {
    instances: BTreeSet<InstanceId>,
    suspects: BTreeSet<InstanceId>,
    conflicts: BTreeSet<(String, InstanceId)>,
    names: BTreeSet<String>,
}

impl Listener {
    fn hear(&mut self, change: Change) {
        let key = |conflict: &Conflict| (conflict.name.clone(), conflict.instance);
        let is_news = match change {
            Change::Joined(instance) => self.instances.insert(instance.id),
            Change::Left(id) => {
                self.suspects.remove(&id);
                self.instances.remove(&id)
            }
            Change::Suspected(id) => self.suspects.insert(id),
            Change::Cleared(id) => self.suspects.remove(&id),
            Change::ModelAdded(name) => self.names.insert(name),
            Change::ModelRemoved(name) => self.names.remove(&name),
            Change::Conflict(conflict) => {
                self.conflicts.insert(key(&conflict));
                true
            }
            Change::ConflictEnded(conflict) => self.conflicts.remove(&key(&conflict)),
            Change::Updated(instance) => self.instances.contains(&instance.id),
            Change::Synced | Change::Stale | Change::Fresh => true,
        };
        assert!(is_news, "a change that changes nothing");
    }
}

/// Checks what holds at every moment.
fn check(core: &mut Core, listener: &Listener) {
    let snapshot = core.snapshot();
    for (name, model) in &snapshot.models {
        assert_eq!(*name, model.card.name);
        for member in &model.members {
            assert_eq!(member.card.checksum(), model.checksum, "one name, one card");
            assert!(!listener.suspects.contains(&member.instance.id), "a suspect is called");
        }
    }
    let conflicts = snapshot.conflicts.iter();
    let conflicts: BTreeSet<_> =
        conflicts.map(|conflict| (conflict.name.clone(), conflict.instance)).collect();
    assert_eq!(conflicts, listener.conflicts);
    let registered: BTreeSet<InstanceId> = core.instances.keys().copied().collect();
    assert_eq!(registered, listener.instances);
    for (id, known) in &core.instances {
        for (card, _) in known.cards.iter().filter(|_| snapshot.is_synced) {
            let model = snapshot.models.get(&card.name);
            let is_served = model.is_some_and(|model| {
                listener.suspects.contains(id) && model.checksum == card.checksum()
                    || model.members.iter().any(|member| member.instance.id == *id)
            });
            let is_conflict = conflicts.contains(&(card.name.clone(), *id));
            assert!(is_served != is_conflict, "served or in conflict, and not both");
        }
    }
    let names: BTreeSet<String> = core.holders.keys().cloned().collect();
    assert_eq!(names, listener.names);
    for (alias, name) in &snapshot.aliases {
        assert!(snapshot.models[name].card.aliases.contains(alias));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2048))]

    #[test]
    fn the_laws_hold_after_any_history(steps in prop::collection::vec(any_step(), 1..60)) {
        let mut core = Core::new(Config::default());
        let mut listener = Listener::default();
        for (index, step) in steps.into_iter().enumerate() {
            let now = at(index as u64);
            let before: Vec<_> = core.holders.clone().into_iter().collect();
            let models = core.snapshot().models;
            let is_outage = matches!(step, Step::Store(Event::Stale | Event::Fresh));
            let changes = match step {
                Step::Put(instance) => core.apply(Event::Put(Arc::new(instance))),
                Step::Remove(id) => core.apply(Event::Remove(InstanceId(id))),
                Step::Suspect(id) => core.suspect(InstanceId(id), now),
                Step::Probed(id, is_well) => core.probed(InstanceId(id), is_well, (now, now)),
                Step::Store(event) => core.apply(event),
            };
            changes.into_iter().for_each(|change| listener.hear(change));
            check(&mut core, &listener);
            prop_assert!(!is_outage || models == core.snapshot().models, "an outage changes models");
            for (name, held) in before {
                let has_a_right = |card: &Card| {
                    card.name == name || core.holders.get(&card.name) == Some(&held)
                };
                let mut keepers = core.cards_of(&name).filter(|(_, known, (card, checksum))| {
                    *checksum == held && !known.instance.is_draining && has_a_right(card)
                });
                if keepers.next().is_some() {
                    prop_assert_eq!(core.holders.get(&name), Some(&held), "a name changed hands");
                }
            }
        }
    }

    #[test]
    fn the_order_of_the_first_listing_does_not_matter(
        instances in prop::collection::vec(any_instance(), 0..8),
    ) {
        let instances: BTreeMap<_, _> =
            instances.into_iter().map(|instance| (instance.id, instance)).collect();
        let serve = |list: Vec<Instance>| {
            let mut core = Core::new(Config::default());
            for instance in list {
                put(&mut core, instance);
            }
            core.apply(Event::Synced);
            core.snapshot()
        };
        let forth = serve(instances.values().cloned().collect());
        let back = serve(instances.into_values().rev().collect());
        prop_assert_eq!(forth, back);
    }

    #[test]
    fn telling_the_same_again_changes_no_snapshot(
        instances in prop::collection::vec(any_instance(), 1..8),
    ) {
        let mut core = synced();
        for instance in instances {
            put(&mut core, instance.clone());
            let once = core.snapshot();
            put(&mut core, instance);
            let twice = core.snapshot();
            prop_assert_eq!(Snapshot { revision: 0, ..once }, Snapshot { revision: 0, ..twice });
        }
    }
}
