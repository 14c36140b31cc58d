//! Keys and settings; what needs a running etcd is in the crate's conformance suite.

use super::*;

#[test]
fn a_query_reads_its_keys_and_no_others() {
    let mut instance = Instance::new("blue-1".parse().unwrap(), "grpc://h:1");
    instance.id = InstanceId(5);
    let one = |name: &str| Query::Namespaces(vec![name.parse().unwrap()]);
    let cases = [
        (Query::All, true),
        (Query::prefix("blue").unwrap(), true),
        (Query::prefix("").unwrap(), true),
        (Query::prefix("green").unwrap(), false),
        (one("blue-1"), true),
        (one("blue"), false),
        (one("blue-2"), false),
    ];
    for (query, is_in) in cases {
        let keys = Keys::new("/s/", &query);
        let key = keys.key(&instance);
        assert_eq!(key, b"/s/instances/blue-1/0000000000000005");
        assert_eq!(keys.id(&key), Some(InstanceId(5)));
        assert_eq!(keys.from <= key && key < keys.to, is_in, "{query:?}");
        assert_eq!(query.selects(&instance.namespace), is_in, "{query:?}");
    }
    let keys = Keys::new("/s", &Query::All);
    for key in ["/s/instances/blue", "/t/instances/a/0000000000000005", "/s/instances/a/5"] {
        assert_eq!(keys.id(key.as_bytes()), None, "{key}");
    }
}

#[test]
fn settings_out_of_bounds_are_refused_and_secrets_are_not_shown() {
    let tasks = Tasks::new();
    let tls = Tls { ca_pem: "no certificate".into(), identity_pem: None, domain: None };
    let cases = [
        ("ttl", Config { ttl: Duration::ZERO, ..Config::default() }),
        ("request timeout", Config { request_timeout: Duration::ZERO, ..Config::default() }),
        ("grace", Config { grace: Duration::from_secs(4), ..Config::default() }),
        ("at least one", Config { endpoints: vec![], ..Config::default() }),
        ("endpoint", Config { endpoints: vec!["http://a b".into()], ..Config::default() }),
        ("authority", Config { endpoints: vec!["https://a:1".into()], ..Config::default() }),
        ("expected https", Config { tls: Some(tls), ..Config::default() }),
    ];
    for (word, config) in cases {
        let error = Etcd::new(config, &tasks).unwrap_err();
        assert!(error.message().contains(word), "{word}: {error}");
    }
    let auth = Some(Auth { user: "root".into(), password: "hunter2".into() });
    let etcd = Etcd::new(Config { auth, ..Config::default() }, &tasks).unwrap();
    let text = format!("{etcd:?}");
    assert!(text.contains("root") && !text.contains("hunter2"), "{text}");
}

#[test]
fn a_watch_that_was_compacted_away_lists_anew_and_any_other_end_is_an_outage() {
    let config = Config::default();
    let connector = Connector::new(&config).unwrap();
    let keys = Keys::new("/s", &Query::All);
    let mut reader =
        Reader { config: Arc::new(config), connector, keys, open: None, is_relisting: false };
    let canceled = wire::WatchResponse { is_canceled: true, ..wire::WatchResponse::default() };
    let compacted = wire::WatchResponse { compact_revision: 9, ..canceled.clone() };
    assert!(reader.check_cancel(&canceled).is_err());
    reader.is_relisting = false;
    reader.check_cancel(&compacted).unwrap();
    assert!(reader.check_cancel(&compacted).is_err(), "in vain");
}
