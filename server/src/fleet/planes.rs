//! What carries requests and events between the roles: gRPC always, NATS where that is asked for.
//!
//! A worker that answers over NATS says so in its registration, beside its gRPC address; so either
//! way is open as long as one of them is. In the same way it tells of its Unix socket, which takes
//! the place of TCP between processes of one machine.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cluster::events::{Listen, NatsEvents, NatsPublisher, Publish, Source, Watch, event_subject};
use cluster::instance::{Instance, InstanceId};
use cluster::nats::{self, Connection, Nats, WithFallback, worker_subject};
use cluster::request::{ClientConfig, Connector, Local, RemoteWorker, Tcp, WorkerServer};
use engine::{Error, Result, Tasks};
use tokio::time::timeout;

use super::sockets::{File, Socket, Sockets};
use super::{PLAIN, SECURE};
use crate::args::{Plane, PlaneArgs, socket_dir};
use crate::security::LinkConnectors;
use crate::support::invalid::Invalid;

/// The scheme of the subject where a worker answers over NATS.
const REQUESTS: &str = "nats://";

/// The scheme of a worker's number, by which its Unix socket is found.
const SOCKET: &str = "unix://";

/// The scheme of what the subjects of a worker's events begin with.
const EVENTS: &str = "nats+events://";

/// How long the last messages may take to leave.
const FLUSH_WAIT: Duration = Duration::from_secs(1);

/// What carries requests and events.
#[derive(Clone, Debug)]
pub struct PlanesConfig {
    /// How NATS is reached; some where it is used.
    nats: Option<nats::Config>,
    requests: Plane,
    events: Plane,
    /// The folder of Unix sockets; none: there are none.
    sockets: Option<PathBuf>,
    /// Whether NATS is named, and nothing goes over it.
    is_idle: bool,
}

impl PlanesConfig {
    /// Checks the arguments and makes the configuration; `has_tls` says that the roles show one
    /// another certificates.
    ///
    /// Errors: [`Invalid`], naming the flag.
    pub fn from_args(args: &PlaneArgs, has_tls: bool) -> std::result::Result<Self, Invalid> {
        let (requests, events) = (args.request_plane, args.event_plane);
        let wants = |plane: Plane| plane == Plane::Nats;
        if has_tls && wants(requests) {
            let text = "--request-plane: over nats the roles show no certificates; expected grpc \
                        with --worker-tls-cert or --worker-tls-ca";
            return Err(Invalid(text.into()));
        }
        let nats = nats_config(args);
        for (flag, plane) in [("--request-plane", requests), ("--event-plane", events)] {
            if wants(plane) && nats.is_none() {
                return Err(Invalid(format!("{flag}: nats needs --nats")));
            }
        }
        let is_used = wants(requests) || wants(events);
        let is_idle = !is_used && nats.is_some();
        let sockets = args.sockets.socket_dir.clone().map_or_else(socket_dir, PathBuf::from);
        let sockets = Some(sockets).filter(|folder| !folder.as_os_str().is_empty());
        Ok(Self { nats: nats.filter(|_| is_used), requests, events, sockets, is_idle })
    }

    /// Returns whether anything is to go over NATS.
    pub(crate) fn uses_nats(&self) -> bool {
        self.nats.is_some()
    }

    /// Returns the same without Unix sockets.
    pub(crate) fn without_sockets(self) -> Self {
        Self { sockets: None, ..self }
    }
}

/// Returns how NATS is reached, if it is named.
pub(crate) fn nats_config(args: &PlaneArgs) -> Option<nats::Config> {
    let servers: Vec<String> = args.nats.iter().filter(|one| !one.is_empty()).cloned().collect();
    if servers.is_empty() {
        return None;
    }
    Some(nats::Config {
        servers,
        credentials: args.nats_credentials.clone(),
        authority: args.nats_ca.clone(),
        ..nats::Config::default()
    })
}

/// What is there of NATS and of Unix sockets.
#[derive(Default)]
pub(crate) struct Planes {
    /// TLS towards workers over gRPC; none calls those that speak in the clear.
    tls: Option<LinkConnectors>,
    sockets: Option<Sockets>,
    /// A worker's own socket.
    file: Mutex<Option<File>>,
    requests: Option<Connection>,
    /// The connection of events, and a frontend's subscriber.
    events: Option<(Connection, NatsEvents)>,
}

impl Planes {
    /// Begins to connect, if NATS is used at all; its tasks belong to `tasks`.
    ///
    /// Errors: settings that are wrong, in a sentence.
    pub(crate) async fn open(
        config: &PlanesConfig,
        tls: Option<LinkConnectors>,
        tasks: &Tasks,
    ) -> std::result::Result<Self, String> {
        if config.is_idle {
            tracing::warn!(
                "--nats is given and not used: expected --request-plane nats or --event-plane nats"
            );
        }
        let sockets = config.sockets.as_deref().map(Sockets::new);
        let Some(nats) = &config.nats else {
            return Ok(Self { tls, sockets, ..Self::default() });
        };
        let opened = Connection::open(nats.clone(), tasks).await;
        let connection = opened.map_err(|error| format!("--nats: {}", error.message()))?;
        let of = |plane: Plane| (plane == Plane::Nats).then(|| connection.clone());
        let subscriber = |connection: Connection| {
            let heard = NatsEvents::new(&connection, tasks);
            (connection, heard)
        };
        let (requests, events) = (of(config.requests), of(config.events).map(subscriber));
        Ok(Self { tls, sockets, requests, events, ..Self::default() })
    }

    /// Waits a moment for NATS, if requests go over it: a worker that is called before it is there
    /// is called over gRPC, and stays so.
    pub(crate) async fn settle(&self) {
        if let Some(connection) = &self.requests
            && !connection.settle().await
        {
            tracing::info!("nats is not there yet: workers may be called over grpc");
        }
    }

    /// Serves a worker's models over NATS and on a Unix socket too, where it has these, and says so
    /// in its registration. Returns what is to be told of its models, if that goes over NATS.
    pub(crate) async fn serve(
        &self,
        instance: &mut Instance,
        server: &WorkerServer,
        tasks: &Tasks,
    ) -> Option<NatsPublisher> {
        let (namespace, id) = (&instance.namespace, instance.id);
        let mut addresses = Vec::new();
        if let Some(sockets) = self.sockets.as_ref().filter(|_| is_on_loopback(&instance.address)) {
            match sockets.listen(id).await {
                Ok(Socket { listener, file }) => {
                    *self.file() = Some(file);
                    addresses.push(format!("{SOCKET}{id}"));
                    let (server, owner) = (server.clone(), tasks.clone());
                    tasks.spawn("local worker", async move {
                        server.serve_local(listener, &owner).await;
                    });
                }
                Err(error) => {
                    tracing::info!(%error, "no socket in --socket-dir: calls go over tcp")
                }
            }
        }
        if let Some(connection) = &self.requests {
            let subject = worker_subject(namespace, id);
            addresses.push(format!("{REQUESTS}{subject}"));
            let listener = connection.listen(subject).await;
            let (server, owner) = (server.clone(), tasks.clone());
            tasks.spawn("nats worker", async move { listener.serve(&server, &owner).await });
        }
        let publisher = self.events.as_ref().map(|(connection, _)| {
            addresses.push(format!("{EVENTS}{}", event_subject(namespace)));
            NatsPublisher::new(connection, (namespace, id), server, tasks)
        });
        instance.more_addresses = addresses;
        publisher
    }

    /// Makes the client of the worker at `grpc://HOST:PORT` or `grpcs://HOST:PORT`, to which other
    /// ways may lead, too.
    ///
    /// Errors: INVALID_REQUEST for an address that cannot be called as this frontend is set up.
    pub(crate) fn client(&self, address: &str, ways: Ways, tasks: &Tasks) -> Result<RemoteWorker> {
        let wrong = |what: &str| Err(Error::invalid(format!("worker `{address}`: {what}")));
        let (plain, secure) = (address.strip_prefix(PLAIN), address.strip_prefix(SECURE));
        match (plain, secure, &self.tls) {
            (Some(plain), _, None) => match self.socket(address, &ways) {
                Some(first) => {
                    let second = Tcp::new(plain);
                    self.reach(WithFallback { first, second }, plain, ways, tasks)
                }
                None => self.reach(Tcp::new(plain), plain, ways, tasks),
            },
            (_, Some(secure), Some(tls)) => self.reach(tls.to(secure)?, secure, ways, tasks),
            // Whoever can register workers would get all that is asked, in the clear.
            (Some(_), _, Some(_)) => {
                wrong("it speaks in the clear, expected TLS (--worker-tls-ca)")
            }
            (_, Some(_), None) => wrong("it speaks TLS, which needs --worker-tls-ca"),
            (None, None, _) => wrong("expected an address `grpc://HOST:PORT` or `grpcs://`"),
        }
    }

    /// Returns the socket of a worker on this machine.
    fn socket(&self, address: &str, ways: &Ways) -> Option<Local> {
        let (sockets, id) = self.sockets.as_ref().zip(ways.socket)?;
        let plain = address.strip_prefix(PLAIN).filter(|_| is_on_loopback(address))?;
        sockets.find(id, plain)
    }

    /// Makes the client of a worker that answers over NATS if that is asked for, and directly.
    fn reach(
        &self,
        direct: impl Connector,
        address: &str,
        ways: Ways,
        tasks: &Tasks,
    ) -> Result<RemoteWorker> {
        let config = ClientConfig::default();
        match (&self.requests, ways.subject) {
            (Some(connection), Some(subject)) => {
                let first = Nats::new(connection, subject, address);
                RemoteWorker::new(WithFallback { first, second: direct }, config, tasks)
            }
            _ => RemoteWorker::new(direct, config, tasks),
        }
    }

    /// Returns the way on which events come now: over NATS if that can be reached, else by `watch`.
    pub(crate) fn listen(&self, instance: &Instance, watch: Watch) -> Box<dyn Listen> {
        match self.nats_events(instance) {
            Some((heard, prefix)) if heard.is_connected() => {
                Box::new(heard.model(instance.id, &prefix, watch))
            }
            _ => Box::new(watch),
        }
    }

    /// Returns whether the worker's events could come over NATS when that can be reached.
    pub(crate) fn may_have_nats(&self, instance: &Instance) -> bool {
        self.nats_events(instance).is_some()
    }

    /// Returns whether the worker's events could come over NATS now.
    pub(crate) fn has_nats_events(&self, instance: &Instance) -> bool {
        self.nats_events(instance).is_some_and(|(heard, _)| heard.is_connected())
    }

    fn nats_events(&self, instance: &Instance) -> Option<(&NatsEvents, String)> {
        let (_, heard) = self.events.as_ref()?;
        Some((heard, own(instance, EVENTS, event_subject(&instance.namespace))?))
    }

    fn file(&self) -> MutexGuard<'_, Option<File>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a worker's socket away.
    pub(crate) fn close(&self) {
        self.file().take();
    }

    /// Waits until what was said over NATS has left, a moment at most.
    pub(crate) async fn flush(&self) {
        let events = self.events.as_ref().map(|(connection, _)| connection);
        if let Some(connection) = self.requests.as_ref().or(events) {
            let _ = timeout(FLUSH_WAIT, connection.flush()).await;
        }
    }
}

/// Other ways to a worker than its address.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Ways {
    /// The subject at which it can be asked over NATS.
    subject: Option<String>,
    /// The worker whose socket it is.
    socket: Option<InstanceId>,
}

impl Ways {
    /// Returns those to an instance: its own, not what else it tells.
    pub(crate) fn to(instance: &Instance) -> Self {
        let socket = own(instance, SOCKET, instance.id.to_string()).map(|_| instance.id);
        let subject = worker_subject(&instance.namespace, instance.id);
        Self { subject: own(instance, REQUESTS, subject), socket }
    }

    /// Returns those to a worker of which only its addresses are known.
    pub(crate) fn told(addresses: &[String]) -> Self {
        let mut numbers = addresses.iter().filter_map(|one| one.strip_prefix(SOCKET)?.parse().ok());
        Self { subject: told_subject(addresses), socket: numbers.next() }
    }
}

/// Returns whether an address in the clear is one of this machine alone.
fn is_on_loopback(address: &str) -> bool {
    let address = address.strip_prefix(PLAIN).and_then(|plain| plain.parse::<SocketAddr>().ok());
    address.is_some_and(|address| address.ip().is_loopback())
}

/// Returns the subject at which a worker says that it can be asked, if it is one of a worker.
fn told_subject(addresses: &[String]) -> Option<String> {
    let is_token = |token: &str| {
        !token.is_empty()
            && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    };
    let is_worker = |subject: &&str| match subject.split('.').collect::<Vec<_>>()[..] {
        ["stator", namespace, "worker", id] => {
            is_token(namespace) && id.parse::<InstanceId>().is_ok()
        }
        _ => false,
    };
    let mut subjects = addresses.iter().filter_map(|address| address.strip_prefix(REQUESTS));
    subjects.find(is_worker).map(str::to_owned)
}

/// Returns the subject that is an instance's own, if it tells it behind a scheme. Others are not
/// believed: what is said there could be meant for anybody.
fn own(instance: &Instance, scheme: &str, subject: String) -> Option<String> {
    let is_it = |address: &String| address.strip_prefix(scheme) == Some(&*subject);
    instance.more_addresses.iter().any(is_it).then_some(subject)
}

/// Tells a plane what a worker has now.
pub(crate) fn publish(publisher: &NatsPublisher, offers: &[super::cards::Offer]) {
    let source = |offer: &super::cards::Offer| {
        let (events, load) = (offer.served.events.clone(), offer.served.load.clone());
        (offer.card.name.clone(), Source { events, load })
    };
    publisher.set(offers.iter().map(source).collect());
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::args::SocketArgs;

    fn arguments(nats: &[&str], request_plane: Plane, event_plane: Plane) -> PlaneArgs {
        let nats = nats.iter().map(ToString::to_string).collect();
        let (nats_credentials, nats_ca, sockets) = (None, None, SocketArgs::default());
        PlaneArgs { nats, nats_credentials, nats_ca, request_plane, event_plane, sockets }
    }

    #[test]
    fn who_wants_nats_says_where_it_is() {
        let read = |nats: &[&str], requests, events| {
            PlanesConfig::from_args(&arguments(nats, requests, events), false)
        };
        let none = read(&[], Plane::Grpc, Plane::Grpc).unwrap();
        assert!(none.nats.is_none() && !none.is_idle);
        let servers = ["nats://a:1", "nats://b:1"];
        let idle = read(&servers, Plane::Grpc, Plane::Grpc).unwrap();
        assert!(idle.nats.is_none() && idle.is_idle, "servers that are not used are worth a word");
        let used = read(&servers, Plane::Grpc, Plane::Nats).unwrap();
        assert!(!used.is_idle);
        assert_eq!(used.nats.unwrap().servers, servers);
        for (requests, events, flag) in [
            (Plane::Nats, Plane::Grpc, "--request-plane"),
            (Plane::Grpc, Plane::Nats, "--event-plane"),
        ] {
            let wrong = read(&[""], requests, events).unwrap_err();
            assert!(wrong.to_string().contains(flag), "{wrong}");
        }
        let secured =
            |requests| PlanesConfig::from_args(&arguments(&servers, requests, Plane::Nats), true);
        assert!(secured(Plane::Grpc).is_ok());
        assert!(secured(Plane::Nats).unwrap_err().to_string().contains("--request-plane"));
    }

    #[test]
    fn only_a_workers_own_subjects_are_believed() {
        let mut instance = Instance::new("a.b".parse().unwrap(), "grpc://a:1");
        let subjects = |instance: &Instance| {
            let (namespace, id) = (&instance.namespace, instance.id);
            let own_subject = own(instance, REQUESTS, worker_subject(namespace, id));
            assert_eq!(Ways::to(instance).subject, own_subject);
            (
                told_subject(&instance.more_addresses),
                own(instance, EVENTS, event_subject(namespace)),
            )
        };
        assert_eq!(subjects(&instance), (None, None));
        let (worker, events) =
            (format!("stator.a_db.worker.{}", instance.id), "stator.a_db.events".to_owned());
        instance.more_addresses = ["$JS.API", "", &events, &format!("{worker}x"), "stator.a_db.>"]
            .map(|subject| format!("{REQUESTS}{subject}"))
            .into();
        instance.more_addresses.push("nats+events://stator.b.events".into());
        assert_eq!(subjects(&instance), (None, None));
        instance.more_addresses.push(format!("nats://{worker}"));
        instance.more_addresses.push(format!("nats+events://{events}"));
        assert_eq!(subjects(&instance), (Some(worker), Some(events)));
    }

    #[test]
    fn only_a_workers_own_socket_on_this_machine_is_used() {
        let mut instance = Instance::new("a".parse().unwrap(), "grpc://127.0.0.1:1");
        let other = InstanceId::random();
        instance.more_addresses = vec!["unix:///run/docker.sock".into(), format!("unix://{other}")];
        assert_eq!(Ways::to(&instance), Ways::default());
        assert_eq!(Ways::told(&instance.more_addresses).socket, Some(other));
        instance.more_addresses.push(format!("unix://{}", instance.id));
        let ways = Ways::to(&instance);
        assert_eq!(ways.socket, Some(instance.id));
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let sockets = Some(Sockets::new(folder.path()));
        let planes = Planes { sockets, ..Planes::default() };
        let found = |address: &str| planes.socket(address, &ways).is_some();
        assert!(found("grpc://127.0.0.1:1") && found("grpc://[::1]:1"));
        for elsewhere in ["grpc://10.0.0.1:1", "grpc://a:1", "grpcs://127.0.0.1:1"] {
            assert!(!found(elsewhere), "{elsewhere}");
        }
    }
}
