//! The frontend: what it does with the membership's snapshots, and what it has to know in the end.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, Weak};

use cluster::instance::InstanceId;
use cluster::membership::Member;
use engine::SequenceHash;
use router::WorkerId;
use tokio::sync::watch;

use super::super::news::Heard;
use super::super::roster::{Candidates, Roster};
use super::air::{Air, Plane};
use super::cache::PREFIXES;
use super::worker::{Link, Remote};
use super::world::{MODEL, World};
use crate::pipeline::{Candidate, Workers};

pub(super) struct Frontend {
    pub(super) world: Arc<World>,
    plane: Plane,
    roster: Roster,
    heard: Heard,
    /// All candidates that there ever were.
    history: Mutex<Vec<Weak<Candidate>>>,
    /// How often a worker became a member.
    came: AtomicUsize,
}

impl Frontend {
    pub(super) fn new(world: &Arc<World>, plane: Plane) -> Arc<Self> {
        let (roster, heard, history) = Default::default();
        let came = AtomicUsize::new(0);
        Arc::new(Self { world: world.clone(), plane, roster, heard, history, came })
    }

    /// Keeps the roster as the membership says.
    pub(super) async fn follow(self: Arc<Self>) {
        let world = &self.world;
        let mut snapshots = world.membership().snapshots();
        let mut before = Vec::new();
        loop {
            let snapshot = snapshots.borrow_and_update().clone();
            let members: Vec<Member> = match snapshot.models.get(MODEL) {
                Some(model) => model.accepting_any().cloned().collect(),
                None => Vec::new(),
            };
            let ids: Vec<u64> = members.iter().map(|member| member.instance.id.0).collect();
            let came = ids.iter().filter(|id| !before.contains(*id)).count();
            self.came.fetch_add(came, Relaxed);
            let (revision, is_stale) = (snapshot.revision, snapshot.is_stale);
            world.tell(format_args!("snapshot {revision}, stale: {is_stale}: {ids:?}"));
            world.counts.frozen.fetch_add(is_stale.into(), Relaxed);
            let of = |member: &Member| (member.instance.id, member.card.role);
            self.roster.set(members, of, |member| self.begin(member.instance.id));
            let [candidates, _] = self.roster.parts();
            world.searches.see(&candidates);
            before = ids;
            world.followed.store(snapshot.revision, Relaxed);
            if snapshots.changed().await.is_err() {
                return;
            }
        }
    }

    /// Takes a worker in: connects to it, and hears what it tells.
    fn begin(self: &Arc<Self>, id: InstanceId) -> Arc<Candidate> {
        let (worker, world) = (self.world.worker(id), self.world.clone());
        let remote = Remote { worker: worker.clone(), world: world.clone() };
        let candidate = Arc::new(Candidate::new(id, remote.engines()));
        self.history.lock().unwrap().push(Arc::downgrade(&candidate));
        let (frontend, told) = (self.clone(), Arc::downgrade(&candidate));
        let source = Air { worker: worker.clone(), world: world.clone(), plane: self.plane };
        world.tasks.spawn("worker news", async move { frontend.heard.hear(&source, &told).await });
        let (gone, owner) = (candidate.gone(), world.clone());
        let watching = async move {
            let link = Link::new(&worker, &world);
            if link.wait(world.roll(1, 40)).await.is_err() {
                world.suspect(id);
            }
            loop {
                Link::new(&worker, &world).lost().await;
                world.suspect(id);
            }
        };
        owner.tasks.spawn("worker state", async move {
            tokio::select! {
                biased;
                () = gone => {}
                () = watching => {}
            }
        });
        candidate
    }

    /// Checks that exactly those are known that are there, and what each of them holds.
    pub(super) fn verify(&self) {
        let present = self.world.present();
        let ids: BTreeSet<InstanceId> = present.iter().map(|worker| worker.id).collect();
        let snapshot = self.world.membership().now();
        assert!(!snapshot.is_stale && snapshot.is_synced);
        let members = snapshot.models.get(MODEL).into_iter().flat_map(|model| &model.members);
        let members: BTreeSet<InstanceId> = members.map(|member| member.instance.id).collect();
        assert_eq!(members, ids, "the membership knows those who are there");
        let [candidates, prompts] = self.roster.parts();
        let known: BTreeSet<InstanceId> = candidates.iter().map(|candidate| candidate.id).collect();
        assert_eq!((known, prompts.len()), (ids, 0), "those who are there can be asked");
        let made = self.history.lock().unwrap().len();
        assert_eq!(made, self.came.load(Relaxed), "who stays is the same candidate");
        let mut blocks = 0;
        for worker in present {
            let truth = worker.cache.lock().unwrap().truth.clone();
            blocks += truth.len();
            assert_eq!(self.held(worker.id), truth, "prefixes of {} are known", worker.id);
        }
        assert_eq!(self.heard.index.holdings(), blocks, "and of nobody else");
        for candidate in candidates.iter() {
            assert_eq!(candidate.in_flight(), 0, "{candidate:?}");
        }
    }

    /// Returns what is known of a worker's cache.
    fn held(&self, worker: InstanceId) -> BTreeSet<u64> {
        let holds = |number: &u64| {
            let found = self.heard.index.find(&[SequenceHash(*number)]);
            found.of(WorkerId(worker.0)).device > 0
        };
        (0..PREFIXES).filter(holds).collect()
    }

    /// Checks that nothing is kept of workers when all are gone.
    pub(super) fn verify_empty(&self) {
        assert!(self.roster.parts().iter().all(|part| part.is_empty()));
        assert_eq!(self.heard.index.blocks(), 0);
        let history = self.history.lock().unwrap();
        let left = history.iter().filter(|candidate| candidate.strong_count() > 0).count();
        assert_eq!(left, 0, "candidates are kept");
        for worker in self.world.workers() {
            assert_eq!(worker.streams(), 0, "{} still works", worker.id);
        }
    }

    /// Adds up what was heard.
    pub(super) fn count(&self) {
        let (counts, heard) = (&self.world.counts, &self.heard.counters);
        counts.events.fetch_add(heard.events.load(Relaxed), Relaxed);
        counts.gaps.fetch_add(heard.gaps.load(Relaxed), Relaxed);
        counts.resyncs.fetch_add(heard.resyncs.load(Relaxed), Relaxed);
    }
}

impl Workers for Frontend {
    fn candidates(&self) -> Candidates {
        let [candidates, _] = self.roster.parts();
        self.world.check_view(&candidates);
        self.world.counts.alone.fetch_add(candidates.is_empty().into(), Relaxed);
        candidates
    }

    fn suspect(&self, id: InstanceId) {
        self.world.suspect(id);
    }

    fn changes(&self) -> watch::Receiver<()> {
        self.roster.changes()
    }
}
