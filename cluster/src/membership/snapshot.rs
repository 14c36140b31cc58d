//! What a frontend may serve at one moment.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::card::{Card, Checksum, Role};
use crate::instance::{Instance, InstanceId, Namespace};

/// The live set at one moment. It never changes; the next one replaces it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Counts snapshots, from 1.
    pub revision: u64,
    /// Whether what was registered at the start is known. Nothing is served before.
    pub is_synced: bool,
    /// Whether the store cannot be reached, so that this is the last known view.
    pub is_stale: bool,
    /// Models by the name in their card.
    pub models: BTreeMap<String, Model>,
    /// Other names, and the name of the model that each stands for.
    pub aliases: BTreeMap<String, String>,
    /// What is registered and not served, because its name belongs to another card.
    pub conflicts: Vec<Conflict>,
}

/// A model and who serves it.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// The card that has the name. Role and adapters are each member's own.
    pub card: Arc<Card>,
    /// The checksum that all members share.
    pub checksum: Checksum,
    /// Who can be called, by id. Empty while all are suspected of being dead.
    pub members: Vec<Member>,
}

/// A worker of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Member {
    /// The worker.
    pub instance: Arc<Instance>,
    /// Its own card of the model.
    pub card: Arc<Card>,
}

/// A card that is not served: its name, or one of its aliases, belongs to another card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The name that both claim.
    pub name: String,
    /// Whose card is not served under it.
    pub instance: InstanceId,
    /// The namespace of that instance.
    pub namespace: Namespace,
    /// The oldest instance with the card that has the name.
    pub holder: InstanceId,
    /// The fields in which the cards differ.
    pub fields: Vec<&'static str>,
}

impl Snapshot {
    /// Returns the model of a name or alias.
    pub fn model(&self, name: &str) -> Option<&Model> {
        let direct = self.models.get(name);
        direct.or_else(|| self.models.get(self.aliases.get(name)?))
    }

    /// Returns whether an instance is a member of any model.
    pub fn has(&self, id: InstanceId) -> bool {
        let mut members = self.models.values().flat_map(|model| &model.members);
        members.any(|member| member.instance.id == id)
    }
}

impl Model {
    /// Returns the members that take new work of a role.
    pub fn accepting(&self, role: Role) -> impl Iterator<Item = &Member> {
        self.members
            .iter()
            .filter(move |member| member.card.role == role && !member.instance.is_draining)
    }

    /// Returns the members that take new work, whatever their role.
    pub fn accepting_any(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| !member.instance.is_draining)
    }

    /// Returns whether a request would find a worker: of each role one can do all of it.
    pub fn is_ready(&self) -> bool {
        self.accepting_any().next().is_some()
    }
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "instance {} of namespace `{}`: its card for `{}` is not served, as instance {} has the \
             name with another `{}`",
            self.instance,
            self.namespace,
            self.name,
            self.holder,
            self.fields.join("`, `")
        )
    }
}
