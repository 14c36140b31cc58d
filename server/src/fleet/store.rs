//! Where a fleet registers, and with which certificates, users and tokens.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cluster::discovery::{
    Describe, Discovery, Etcd, File, Kubernetes, Static, etcd, file, kubernetes, static_list,
};
use engine::Tasks;

use super::{PLAIN, SECURE};
use crate::args::{DiscoveryArgs, state_dir};
use crate::support::invalid::Invalid;

/// The API server as pods reach it.
const IN_CLUSTER: &str = "https://kubernetes.default.svc";
/// Where a pod finds the token, the authority and the namespace of its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Where registrations are kept.
#[derive(Clone, Debug)]
pub enum Store {
    /// In a folder of this machine.
    File(PathBuf),
    /// In etcd.
    Etcd(Box<etcd::Config>),
    /// In a Kubernetes cluster.
    Kubernetes(Box<kubernetes::Config>),
    /// Nowhere: the workers' addresses are known.
    Static(Vec<String>),
}

impl Store {
    /// Reads the flags, and the files that they name.
    ///
    /// Errors: [`Invalid`], naming the flag.
    pub fn from_args(args: &DiscoveryArgs) -> Result<Self, Invalid> {
        let Some(url) = &args.discovery else {
            let folder = state_dir().map(|state| state.join("stator").join("discovery"));
            let none = || Invalid("--discovery: no state folder is known; name one".into());
            let store = folder.map(Self::File).ok_or_else(none)?;
            return store.check_flags(args);
        };
        if url.contains('@') && !url.starts_with("file:") {
            let text = "--discovery: a user stands in --discovery-user, its password in the file of \
                        --discovery-password-file";
            return Err(Invalid(text.into()));
        }
        let list = |rest: &str| -> Vec<String> {
            rest.split(',').filter(|one| !one.is_empty()).map(str::to_owned).collect()
        };
        let store = match url.split_once("://") {
            Some(("file", path)) if path.starts_with('/') => Some(Self::File(path.into())),
            Some((scheme @ ("etcd" | "etcds"), rest)) if !list(rest).is_empty() => {
                Some(Self::Etcd(Box::new(etcd_config(list(rest), scheme == "etcds", args)?)))
            }
            Some((scheme @ ("kubernetes" | "kubernetes+http"), rest)) => {
                let config = kubernetes_config(rest, scheme == "kubernetes+http", args)?;
                Some(Self::Kubernetes(Box::new(config)))
            }
            Some(("static", rest)) if !list(rest).is_empty() => {
                Some(Self::Static(list(rest).iter().map(|one| format!("{PLAIN}{one}")).collect()))
            }
            _ => None,
        };
        let unknown = || {
            Invalid(format!(
                "--discovery: expected file:///DIR, etcd[s]://HOST:PORT[,HOST:PORT], \
                 kubernetes://[HOST:PORT/]NAMESPACE or static://HOST:PORT[,HOST:PORT], got `{url}`"
            ))
        };
        store.ok_or_else(unknown)?.check_flags(args)
    }

    /// Refuses flags that are for another store, and one of two that belong together.
    fn check_flags(self, args: &DiscoveryArgs) -> Result<Self, Invalid> {
        let pairs = [
            (
                ["--discovery-user", "--discovery-password-file"],
                [args.discovery_user.is_some(), args.discovery_password_file.is_some()],
            ),
            (
                ["--discovery-tls-cert", "--discovery-tls-key"],
                [args.discovery_tls_cert.is_some(), args.discovery_tls_key.is_some()],
            ),
        ];
        if let Some(([one, other], _)) = pairs.iter().find(|(_, [one, other])| one != other) {
            return Err(Invalid(format!("{one} and {other}: expected both or neither")));
        }
        let is_etcd = matches!(self, Self::Etcd(_));
        let is_kubernetes = matches!(self, Self::Kubernetes(_));
        let flags = [
            ("--discovery-user", args.discovery_user.is_some(), is_etcd),
            ("--discovery-tls-ca", args.discovery_tls_ca.is_some(), is_etcd || is_kubernetes),
            ("--discovery-tls-cert", args.discovery_tls_cert.is_some(), is_etcd),
            ("--discovery-token-file", args.discovery_token_file.is_some(), is_kubernetes),
            ("--kubernetes-pod", args.kubernetes_pod.is_some(), is_kubernetes),
        ];
        match flags.iter().find(|(_, is_given, is_for_it)| *is_given && !is_for_it) {
            None => Ok(self),
            Some((flag, ..)) => Err(Invalid(format!("{flag}: is not for this --discovery"))),
        }
    }

    /// Takes workers at known addresses for ones that speak TLS.
    pub(super) fn secured(self) -> Self {
        let secured = |address: String| address.replacen(PLAIN, SECURE, 1);
        match self {
            Self::Static(addresses) => Self::Static(addresses.into_iter().map(secured).collect()),
            other => other,
        }
    }

    /// Makes the discovery; `describe` asks workers at known addresses what they are.
    ///
    /// Errors: what is wrong with the settings.
    pub(crate) fn open(
        &self,
        describe: Arc<dyn Describe>,
        tasks: &Tasks,
    ) -> engine::Result<Box<dyn Discovery>> {
        Ok(match self {
            Self::File(folder) => Box::new(File::new(file::Config::new(folder), tasks)?),
            Self::Etcd(config) => Box::new(Etcd::new((**config).clone(), tasks)?),
            Self::Kubernetes(config) => Box::new(Kubernetes::new((**config).clone(), tasks)?),
            Self::Static(addresses) => {
                let addresses = addresses.clone();
                let config = static_list::Config { addresses, ..Default::default() };
                Box::new(Static::new(config, describe, tasks)?)
            }
        })
    }
}

fn etcd_config(
    endpoints: Vec<String>,
    has_tls: bool,
    args: &DiscoveryArgs,
) -> Result<etcd::Config, Invalid> {
    let tls = match &args.discovery_tls_ca {
        Some(_) if !has_tls => {
            return Err(Invalid("--discovery-tls-ca: TLS is spoken with etcds://".into()));
        }
        None if has_tls => {
            return Err(Invalid("--discovery: etcds:// needs --discovery-tls-ca".into()));
        }
        None if args.discovery_tls_cert.is_some() => {
            return Err(Invalid("--discovery-tls-cert: TLS is spoken with etcds://".into()));
        }
        None => None,
        Some(ca) => {
            let identity = args.discovery_tls_cert.as_ref().zip(args.discovery_tls_key.as_ref());
            let identity = identity.map(|(certificate, key)| -> Result<_, Invalid> {
                let certificate = read("--discovery-tls-cert", certificate)?;
                Ok((certificate, read("--discovery-tls-key", key)?))
            });
            let identity_pem = identity.transpose()?;
            let ca_pem = read("--discovery-tls-ca", ca)?;
            Some(etcd::Tls { ca_pem, identity_pem, domain: None })
        }
    };
    let auth = args.discovery_user.as_ref().zip(args.discovery_password_file.as_ref());
    let auth = auth.map(|(user, file)| -> Result<_, Invalid> {
        let password = read("--discovery-password-file", file)?;
        let password = password.trim_end_matches(['\r', '\n']).to_owned();
        Ok(etcd::Auth { user: user.clone(), password })
    });
    Ok(etcd::Config { endpoints, tls, auth: auth.transpose()?, ..etcd::Config::default() })
}

/// Reads `[HOST:PORT/]NAMESPACE`. Without a host it is the cluster that this pod runs in, with its
/// service account, and without a namespace the pod's own.
fn kubernetes_config(
    rest: &str,
    is_plain: bool,
    args: &DiscoveryArgs,
) -> Result<kubernetes::Config, Invalid> {
    let account = Path::new(SERVICE_ACCOUNT);
    let (server, namespace) = match rest.rsplit_once('/') {
        Some((host, namespace)) if !host.is_empty() => {
            (format!("{}://{host}", if is_plain { "http" } else { "https" }), namespace)
        }
        None if !is_plain => (IN_CLUSTER.to_owned(), rest),
        _ => {
            return Err(Invalid(format!(
                "--discovery: expected kubernetes+http://HOST:PORT/NAMESPACE, got `{rest}`"
            )));
        }
    };
    let is_inside = server == IN_CLUSTER;
    let namespace = match namespace {
        "" if is_inside => read("--discovery", &account.join("namespace"))?.trim().to_owned(),
        name => name.to_owned(),
    };
    let inside = |name: &str| is_inside.then(|| account.join(name));
    let token_file = args.discovery_token_file.clone().or_else(|| inside("token"));
    let ca = args.discovery_tls_ca.clone().or_else(|| inside("ca.crt"));
    let ca_pem = ca.map(|file| read("--discovery-tls-ca", &file)).transpose()?;
    let pod = args.kubernetes_pod.as_ref().map(|text| -> Result<_, Invalid> {
        let (name, uid) = text
            .split_once('/')
            .filter(|(name, uid)| !name.is_empty() && !uid.is_empty())
            .ok_or_else(|| Invalid(format!("--kubernetes-pod: expected NAME/UID, got `{text}`")))?;
        Ok(kubernetes::Pod { name: name.to_owned(), uid: uid.to_owned() })
    });
    let pod = pod.transpose()?;
    Ok(kubernetes::Config { token_file, ca_pem, pod, ..kubernetes::Config::new(server, namespace) })
}

fn read(flag: &str, file: &Path) -> Result<String, Invalid> {
    fs::read_to_string(file)
        .map_err(|error| Invalid(format!("{flag}: cannot read {}: {error}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a URL and flags as `stator frontend` does.
    fn parse(line: &str) -> Result<Store, String> {
        #[derive(clap::Parser)]
        struct Flags {
            #[command(flatten)]
            discovery: DiscoveryArgs,
        }
        use clap::Parser;
        let words = std::iter::once("stator").chain(line.split_whitespace());
        let flags = Flags::try_parse_from(words).map_err(|error| error.to_string())?;
        Store::from_args(&flags.discovery).map_err(|error| error.to_string())
    }

    #[test]
    fn a_store_is_a_url() {
        let read = |url: &str| parse(&format!("--discovery {url}"));
        assert!(matches!(read("file:///a/b"), Ok(Store::File(path)) if path == Path::new("/a/b")));
        let Ok(Store::Etcd(etcd)) = read("etcd://a:1,b:2") else { panic!() };
        assert_eq!(etcd.endpoints, ["a:1", "b:2"]);
        assert!(matches!(read("static://a:1"), Ok(Store::Static(list)) if list == ["grpc://a:1"]));
        let Ok(Store::Kubernetes(proxy)) = read("kubernetes+http://a:1/team") else { panic!() };
        assert_eq!((proxy.server.as_str(), proxy.namespace.as_str()), ("http://a:1", "team"));
        let wrong = ["", "/a/b", "file://a", "etcd://", "nats://a:1", "static://,", "etcds://a:1"];
        for wrong in wrong.into_iter().chain(["kubernetes+http://a:1", "kubernetes+http:///team"]) {
            assert!(read(wrong).unwrap_err().contains("--discovery"), "{wrong}");
        }
    }

    #[test]
    fn secrets_come_from_files_and_are_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let (word, pem) = (path("word", "hunter2\n"), path("ca.pem", "a certificate"));
        let flags = format!("--discovery-user root --discovery-password-file {word}");
        let store = parse(&format!("--discovery etcd://a:1 {flags}")).unwrap();
        let Store::Etcd(config) = &store else { panic!() };
        assert_eq!(config.auth.as_ref().unwrap().password, "hunter2");
        assert!(!format!("{store:?}").contains("hunter2"));
        let error = parse("--discovery etcd://root:hunter2@a:1").unwrap_err();
        assert!(error.contains("--discovery-user") && !error.contains("hunter2"), "{error}");
        let key = format!("--discovery-tls-cert {pem} --discovery-tls-key {word}");
        let store = parse(&format!("--discovery etcds://a:1 --discovery-tls-ca {pem} {key}"));
        let Ok(Store::Etcd(config)) = &store else { panic!("{store:?}") };
        assert_eq!(config.tls.as_ref().unwrap().ca_pem, "a certificate");
        assert!(!format!("{store:?}").contains("hunter2"));
        let outside = format!(
            "--discovery kubernetes://a:6443/team --discovery-tls-ca {pem} \
             --discovery-token-file {word} --kubernetes-pod worker-0/1-2-3"
        );
        let Ok(Store::Kubernetes(config)) = parse(&outside) else { panic!() };
        assert_eq!(config.server, "https://a:6443");
        assert_eq!(config.pod.as_ref().unwrap().uid, "1-2-3");
    }

    #[test]
    fn a_flag_that_is_for_another_store_is_refused_by_name() {
        let cases = [
            ("--discovery etcd://a:1 --discovery-tls-ca x", "--discovery-tls-ca"),
            ("--discovery etcd://a:1 --discovery-user u", "--discovery-password-file"),
            ("--discovery etcd://a:1 --kubernetes-pod a/b", "--kubernetes-pod"),
            ("--discovery file:///a --discovery-token-file x", "--discovery-token-file"),
            ("--discovery kubernetes+http://a:1/b --kubernetes-pod a", "NAME/UID"),
            ("--discovery kubernetes://a:1/b --discovery-tls-ca /none", "/none"),
        ];
        for (line, word) in cases {
            let error = parse(line).unwrap_err();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
