//! The objects in which registrations lie, as far as discovery reads and writes them.
//!
//! An instance is a ConfigMap `stator-ID` with the record under `instance`. It names the Lease of
//! its process (`coordination.k8s.io`), whose `renewTime` is the process's sign of life, and is owned
//! by it, so that Kubernetes removes both together. Leases are what the API server is built to renew
//! often: kubelets do it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::moment;
use crate::discovery::Query;
use crate::instance::{Instance, InstanceId};

/// The label of every object of ours; its value is `instance` or `process`.
const RECORD: &str = "stator/record";
/// The label with the namespace of an instance, if it can be one.
const NAMESPACE: &str = "stator/namespace";
/// The label with the name of the Lease.
const LEASE: &str = "stator/lease";
/// The key of the record in a ConfigMap.
const DATA: &str = "instance";

/// The pod that a worker runs in, which then owns what it registers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// The pod's name.
    pub name: String,
    /// The pod's uid.
    pub uid: String,
}

/// Which of the two kinds of objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    ConfigMap,
    Lease,
}

impl Kind {
    /// Returns the path of all objects of the kind in a Kubernetes namespace.
    pub(super) fn path(self, namespace: &str) -> String {
        match self {
            Self::ConfigMap => format!("/api/v1/namespaces/{namespace}/configmaps"),
            Self::Lease => {
                format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases")
            }
        }
    }

    /// Returns the selector of those that a query may want.
    pub(super) fn selector(self, query: &Query) -> String {
        match (self, query) {
            (Self::Lease, _) => format!("{RECORD}=process"),
            (Self::ConfigMap, Query::Namespaces(list))
                if list.iter().all(|name| is_label(name.as_str())) =>
            {
                let list: Vec<&str> = list.iter().map(|name| name.as_str()).collect();
                format!("{RECORD}=instance,{NAMESPACE} in ({})", list.join(","))
            }
            (Self::ConfigMap, _) => format!("{RECORD}=instance"),
        }
    }
}

/// The answer of an API server that does not do what it was asked.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) message: String,
    pub(super) code: u16,
}

#[derive(Debug, Deserialize)]
pub(super) struct List {
    pub(super) metadata: ListMeta,
    #[serde(default = "Vec::new")]
    pub(super) items: Vec<Object>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ListMeta {
    pub(super) resource_version: String,
    #[serde(rename = "continue")]
    pub(super) more: String,
}

/// An object of either kind.
#[derive(Debug, Deserialize)]
pub(super) struct Object {
    pub(super) metadata: Metadata,
    #[serde(default)]
    data: BTreeMap<String, String>,
    #[serde(default)]
    spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Metadata {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) resource_version: String,
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    lease_duration_seconds: Option<u64>,
    renew_time: Option<String>,
}

impl Object {
    /// Returns the record of an instance.
    pub(super) fn record(&self) -> &str {
        self.data.get(DATA).map_or("", String::as_str)
    }

    /// Returns the name of the Lease of an instance.
    pub(super) fn lease(&self) -> &str {
        self.metadata.labels.get(LEASE).map_or("", String::as_str)
    }

    /// Returns after what time without renewal a Lease's process is gone.
    pub(super) fn ttl(&self) -> Option<Duration> {
        self.spec.lease_duration_seconds.map(Duration::from_secs)
    }

    /// Returns how old the last renewal of a Lease is at a time since 1970; nothing if it says
    /// none.
    pub(super) fn age(&self, now: Duration) -> Option<Duration> {
        let renewed = moment::parse(self.spec.renew_time.as_deref()?)?;
        Some(now.saturating_sub(renewed))
    }
}

/// A Lease that the API server knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) name: String,
    pub(super) uid: String,
}

/// Returns the Lease of a process, renewed at a time since 1970.
pub(super) fn lease(name: &str, ttl: Duration, pod: Option<&Pod>, now: Duration) -> Value {
    let mut metadata = json!({"name": name, "labels": {RECORD: "process"}});
    if let Some(Pod { name, uid }) = pod {
        let owner = json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid});
        metadata["ownerReferences"] = json!([owner]);
    }
    let now = moment::format(now);
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": metadata,
        "spec": {
            "holderIdentity": pod.map_or(name, |pod| &pod.name),
            "leaseDurationSeconds": ttl.as_secs(),
            "acquireTime": now,
            "renewTime": now,
        },
    })
}

/// Returns what is changed of a Lease when it is renewed at a time since 1970.
pub(super) fn renewal(now: Duration) -> Value {
    json!({"spec": {"renewTime": moment::format(now)}})
}

/// Returns the ConfigMap of an instance, owned by a Lease.
pub(super) fn config_map(instance: &Instance, json: &[u8], owner: &Owner) -> Value {
    let namespace = instance.namespace.as_str();
    let mut labels = json!({RECORD: "instance", LEASE: owner.name});
    if is_label(namespace) {
        labels[NAMESPACE] = namespace.into();
    }
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": map_name(instance.id),
            "labels": labels,
            "ownerReferences": [{
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "name": owner.name,
                "uid": owner.uid,
            }],
        },
        "data": {DATA: String::from_utf8_lossy(json)},
    })
}

/// Returns the name of the ConfigMap of an instance.
pub(super) fn map_name(id: InstanceId) -> String {
    format!("stator-{id}")
}

/// Returns whether a text can be the value of a label.
fn is_label(text: &str) -> bool {
    let is_inner = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    let ends = [text.bytes().next(), text.bytes().last()];
    text.len() <= 63
        && text.as_bytes().iter().all(is_inner)
        && ends.iter().flatten().all(u8::is_ascii_alphanumeric)
}

/// What a watch tells.
#[derive(Debug, Deserialize)]
pub(super) struct WatchEvent<'a> {
    #[serde(rename = "type")]
    pub(super) kind: Change,
    #[serde(borrow)]
    pub(super) object: &'a serde_json::value::RawValue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Change {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
}
