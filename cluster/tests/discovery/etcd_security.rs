//! Certificates of both sides, and users.

use std::path::Path;
use std::process::Command;

use cluster::discovery::etcd::{Auth, Tls};

use super::*;

/// Makes an authority and a certificate for 127.0.0.1, which serves for both sides.
pub(crate) fn make_certificates(folder: &Path) {
    let run = |arguments: &str| {
        let arguments = arguments.split_whitespace();
        let output = Command::new("openssl").args(arguments).current_dir(folder).output();
        let output = output.unwrap_or_else(|error| {
            panic!("openssl cannot be started ({error}): install Debian's package `openssl`")
        });
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    run(&format!("req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=authority"));
    run(&format!("req {key} -keyout key.pem -out request.pem -subj /CN=etcd"));
    let extensions = "subjectAltName=IP:127.0.0.1,DNS:etcd.test\n\
                      extendedKeyUsage=serverAuth,clientAuth\n";
    std::fs::write(folder.join("extensions"), extensions).unwrap();
    run("x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
         -extfile extensions -out cert.pem");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_of_both_sides_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    make_certificates(folder.path());
    let path = |name: &str| folder.path().join(name).display().to_string();
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    let arguments = [
        format!("--cert-file={}", path("cert.pem")),
        format!("--key-file={}", path("key.pem")),
        format!("--trusted-ca-file={}", path("ca.pem")),
        "--client-cert-auth".to_owned(),
    ];
    let identity = Some((read("cert.pem"), read("key.pem")));
    let good = Tls { ca_pem: read("ca.pem"), identity_pem: identity, domain: None };
    let server = EtcdServer::start_in(folder, &arguments);
    let tasks = Tasks::new();
    let open = |tls: Tls| {
        let config = etcd::Config { tls: Some(tls), ..etcd_config(&server) };
        Arc::new(Etcd::new(config, &tasks).unwrap()) as Arc<dyn Discovery>
    };
    let discovery = open(Tls { domain: Some("etcd.test".into()), ..good.clone() });
    let instance = instance("fleet", 1);
    let lease = discovery.register(instance.clone()).await.unwrap();
    until_held(&lease).await;
    let mut follower = follow(&open(good.clone()));
    follower.until("it", |follower| follower.has(&instance)).await;
    let bad = [
        Tls { identity_pem: None, ..good.clone() },
        Tls { domain: Some("elsewhere.test".into()), ..good },
    ];
    for tls in bad {
        let mut refused = follow(&open(tls));
        refused.until("refused", |follower| follower.is_stale).await;
        refused.for_a_while(Duration::from_secs(1)).await;
        assert!(refused.known.is_empty());
    }
}

/// Makes checks of a password cheap: a busy machine may take seconds for one of etcd's usual cost.
const CHEAP_PASSWORDS: &str = "--bcrypt-cost=4";

/// Makes etcd ask for users, of which there is one.
fn enable_users(server: &EtcdServer) {
    server.post("/v3/auth/user/add", r#"{"name":"root","password":"secret"}"#);
    server.post("/v3/auth/role/add", r#"{"name":"root"}"#);
    server.post("/v3/auth/user/grant", r#"{"user":"root","role":"root"}"#);
    server.post("/v3/auth/enable", "{}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_are_checked_and_come_back_after_a_restart() {
    let mut server = EtcdServer::start_with(&[CHEAP_PASSWORDS.to_owned()]);
    enable_users(&server);
    let tasks = Tasks::new();
    let open = |password: Option<&str>, server: &EtcdServer| {
        let auth = password.map(|text| Auth { user: "root".into(), password: text.into() });
        let config = etcd::Config { auth, ..etcd_config(server) };
        Arc::new(Etcd::new(config, &tasks).unwrap()) as Arc<dyn Discovery>
    };
    let discovery = open(Some("secret"), &server);
    let instance = instance("fleet", 1);
    let _lease = discovery.register(instance.clone()).await.unwrap();
    let mut follower = follow(&discovery);
    follower.until("it", |follower| follower.has(&instance)).await;
    for password in [None, Some("wrong")] {
        let mut refused = follow(&open(password, &server));
        refused.until("refused", |follower| follower.is_stale).await;
        refused.for_a_while(Duration::from_secs(1)).await;
        assert!(refused.known.is_empty());
    }
    // Tokens are forgotten with the process that gave them.
    server.kill();
    follower.until("stale", |follower| follower.is_stale).await;
    server.restart();
    follower.until("fresh", |follower| !follower.is_stale).await;
    let mut late = follow(&discovery);
    late.until("it is there again", |late| late.has(&instance)).await;
    assert_eq!(follower.count(|event| matches!(event, Event::Remove(_))), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_ran_out_is_renewed_by_the_call_that_finds_it_out() {
    // A token that is not used for so long is forgotten; keeping a lease alive does not use it.
    let lifetime = "--auth-token-ttl=1".to_owned();
    let server = EtcdServer::start_with(&[lifetime, CHEAP_PASSWORDS.to_owned()]);
    enable_users(&server);
    let tasks = Tasks::new();
    let auth = Some(Auth { user: "root".into(), password: "secret".into() });
    let config = etcd::Config { auth, ..etcd_config(&server) };
    let discovery: Arc<dyn Discovery> = Arc::new(Etcd::new(config, &tasks).unwrap());
    let mut instance = instance("fleet", 1);
    let lease = discovery.register(instance.clone()).await.unwrap();
    until_held(&lease).await;
    let mut follower = follow(&discovery);
    for is_draining in [true, false] {
        follower.for_a_while(Duration::from_secs(4)).await;
        instance.is_draining = is_draining;
        lease.update(instance.clone()).await.unwrap();
        assert_eq!(lease.state(), LeaseState::Held);
        follower.until("it is changed", |follower| follower.has(&instance)).await;
    }
    follower.for_a_while(Duration::from_secs(4)).await;
    lease.revoke().await.unwrap();
    follower.until("none", |follower| follower.known.is_empty()).await;
    assert_eq!(follower.count(|event| matches!(event, Event::Stale)), 0);
}
