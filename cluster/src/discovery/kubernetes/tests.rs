//! Settings and selectors; what needs an API server is in the crate's conformance suite.

use std::time::Duration;

use super::*;

#[test]
fn settings_out_of_bounds_are_refused() {
    let good = Config::new("http://127.0.0.1:8001", "fleet");
    Kubernetes::new(good.clone(), &Tasks::new()).unwrap();
    let https = "https://a:1".to_owned();
    let cases = [
        ("ttl", Config { ttl: Duration::from_millis(1500), ..good.clone() }),
        ("request timeout", Config { request_timeout: Duration::ZERO, ..good.clone() }),
        ("grace", Config { grace: Duration::from_secs(1), ..good.clone() }),
        ("namespace", Config { namespace: "Fleet".into(), ..good.clone() }),
        ("namespace", Config { namespace: "a/b".into(), ..good.clone() }),
        ("authority", Config { server: https.clone(), ..good.clone() }),
        ("in PEM", Config { server: https, ca_pem: Some("none".into()), ..good.clone() }),
        ("HOST:PORT", Config { server: "a:1".into(), ..good.clone() }),
        ("HOST:PORT", Config { server: "ftp://a".into(), ..good }),
    ];
    for (word, config) in cases {
        let error = Kubernetes::new(config, &Tasks::new()).unwrap_err();
        assert!(error.message().contains(word), "{word}: {error}");
    }
}

#[test]
fn namespaces_are_selected_by_label_where_they_can_be_one() {
    let select = |names: &[&str]| {
        let names = names.iter().map(|name| name.parse().unwrap()).collect();
        Kind::ConfigMap.selector(&Query::Namespaces(names))
    };
    assert_eq!(select(&["a", "b.c"]), "stator/record=instance,stator/namespace in (a,b.c)");
    for names in [&["-a"][..], &["a", "b_"], &[&"x".repeat(64)]] {
        assert_eq!(select(names), "stator/record=instance", "{names:?}");
    }
    assert_eq!(Kind::Lease.selector(&Query::All), "stator/record=process");
}

#[test]
fn a_query_is_written_so_that_nothing_of_it_is_read_otherwise() {
    assert_eq!(client::encode("a=b,c in (d)&é"), "a%3Db%2Cc%20in%20%28d%29%26%C3%A9");
}
