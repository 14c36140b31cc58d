//! Every name of another server has its answer.

use std::collections::BTreeSet;
use std::ffi::OsString;

use super::apply::{is_guard, of_variable};
use super::{Means, Name, Reading, Takes, all, dynamo, triton, variables};
use crate::args::{Environment, Parsed, ROLES, command, parse_from};

/// Values of which every setting takes one.
const SAMPLES: [&str; 14] = [
    "2",
    "1",
    "65535",
    "/a",
    "529",
    "none",
    "OFF",
    "explicit",
    "triton",
    "etcd",
    "nats",
    "all",
    "info",
    "health:a=b",
];

fn parse(role: &str, args: &[String], environment: &Environment) -> Result<Parsed, String> {
    let words = ["stator", role].into_iter().map(str::to_owned).chain(args.iter().cloned());
    parse_from(words.map(OsString::from), environment).map_err(|error| error.to_string())
}

fn with(variable: &str, value: &str) -> Environment {
    [(variable.to_owned(), value.to_owned())].into()
}

/// Returns the roles that have a setting.
fn roles_with(ours: &str) -> Vec<&'static str> {
    let command = command();
    let has = |role: &&str| {
        let role = command.find_subcommand(role).unwrap();
        role.get_arguments().any(|arg| arg.get_long() == Some(ours))
    };
    ROLES.into_iter().filter(has).collect()
}

/// Returns values to try a name with: those that it takes first.
fn samples(name: &Name) -> Vec<&'static str> {
    match (&name.means, name.takes) {
        (Means::Ours(_, Reading::Choice(list)), _) => {
            list.iter().map(|(value, _)| *value).collect()
        }
        (_, Takes::Nothing | Takes::Bool) => vec!["true", "false"],
        (Means::Only(values), _) if !values.is_empty() => values.to_vec(),
        (Means::Only([]), _) => vec!["1"],
        _ => SAMPLES.to_vec(),
    }
}

/// Ends a row of attempts behind the first that was taken: each of them reads the whole grammar.
fn until_taken(
    is_taken: &mut bool,
    tried: Result<Parsed, String>,
) -> Option<Result<Parsed, String>> {
    if std::mem::replace(is_taken, *is_taken || tried.is_ok()) {
        return None;
    }
    Some(tried)
}

#[test]
fn every_name_stands_once_and_for_a_setting_that_there_is() {
    let (mut flags, mut names) = (BTreeSet::new(), BTreeSet::new());
    for name in all() {
        let is_same = matches!(name.means, Means::Ours(ours, Reading::Same) if ours == name.flag);
        assert!(name.flag.is_empty() || is_same || flags.insert(name.flag), "{}", name.flag);
        assert!(name.variable.is_empty() || names.insert(name.variable), "{}", name.variable);
        match &name.means {
            Means::Ours(ours, _) => assert!(!roles_with(ours).is_empty(), "no role has --{ours}"),
            _ => assert!(!name.says.is_empty(), "{name:?} says nothing"),
        }
        for flag in name.says.split("`--").skip(1) {
            let flag = flag.split([' ', '`']).next().unwrap();
            let is_known = !roles_with(flag).is_empty() || all().any(|name| name.flag == flag);
            assert!(is_known, "{name:?} names --{flag}, which there is not");
        }
    }
    assert!(dynamo::NAMES.len() + dynamo::ROUTER.len() >= 57, "Dynamo's frontend has 57 flags");
}

#[test]
fn every_flag_is_one_of_ours_or_told_of_or_refused_by_a_sentence() {
    for name in all().filter(|name| !name.flag.is_empty()) {
        let role = match &name.means {
            Means::Ours(ours, _) => roles_with(ours)[0],
            _ => "frontend",
        };
        let given = |value: &str| format!("--{}={value}", name.flag);
        let tried: Vec<_> = samples(name)
            .into_iter()
            .map(|value| parse(role, &[given(value)], &Environment::new()))
            .scan(false, until_taken)
            .collect();
        let taken = tried.iter().flatten().next();
        match &name.means {
            // Halves of a pair: the other one is asked for by our name.
            Means::Ours(ours, _) if taken.is_none() => {
                let error = tried[0].as_ref().unwrap_err();
                assert!(error.contains("required arguments") && error.contains(ours), "{error}");
            }
            Means::Ours(ours, _) => {
                let parsed = taken.unwrap_or_else(|| panic!("--{}: {:?}", name.flag, tried[0]));
                let text = parsed.given.dump(role, &[]);
                let is_set =
                    text.contains(&format!("{ours} = ")) || text.contains("is set; it holds");
                let is_set = is_set || name.flag == "dump-config-to";
                assert!(is_set, "--{}: {text}", name.flag);
            }
            Means::Only([]) => {
                let error = tried[0].as_ref().unwrap_err();
                assert!(error.contains(name.says) && error.contains(name.flag), "{error}");
            }
            Means::Any | Means::Only(_) => {
                let notes = &taken.unwrap_or_else(|| panic!("{:?}", tried[0])).given.notes;
                assert!(notes.len() == 1 && notes[0].text.contains(name.flag), "{notes:?}");
            }
        }
        if let Means::Only([_, ..]) = name.means {
            let other = if name.takes == Takes::Value { "else" } else { "false" };
            let other =
                if samples(name)[0] == "true" && matches!(name.means, Means::Only(["false"])) {
                    "true"
                } else {
                    other
                };
            let error = parse(role, &[given(other)], &Environment::new()).unwrap_err();
            assert!(error.contains(name.says), "{error}");
        }
    }
}

#[test]
fn every_variable_is_one_of_ours_or_told_of_or_refused_by_a_sentence() {
    for name in all().filter(|name| !name.variable.is_empty()) {
        for role in ROLES {
            let tried: Vec<_> = samples(name)
                .into_iter()
                .map(|value| parse(role, &[], &with(name.variable, value)))
                .scan(false, until_taken)
                .collect();
            let taken = tried.iter().flatten().next();
            match &name.means {
                Means::Only([]) => assert!(tried[0].as_ref().unwrap_err().contains(name.says)),
                Means::Ours(ours, _) if roles_with(ours).contains(&role) => {
                    let parsed = taken.unwrap_or_else(|| panic!("{}: {tried:?}", name.variable));
                    let is_set = tried
                        .iter()
                        .flatten()
                        .any(|parsed| parsed.given.dump(role, &[]).contains("# environment DYN_"));
                    let is_default = matches!(name.means, Means::Ours(_, Reading::Choice(_)));
                    let is_dump = name.variable == "DYN_DUMP_CONFIG_TO";
                    assert!(
                        is_set || is_dump || is_default || !parsed.given.notes.is_empty(),
                        "{} in {role}",
                        name.variable
                    );
                }
                Means::Ours(..) if is_guard(name.variable) => {
                    let error = tried[0].as_ref().unwrap_err();
                    assert!(error.contains("has not"), "{error}");
                }
                _ => {
                    let notes = &taken.unwrap_or_else(|| panic!("{:?}", tried[0])).given.notes;
                    assert!(notes[0].text.contains(name.variable), "{notes:?}");
                }
            }
        }
    }
}

#[test]
fn no_name_that_keeps_others_out_is_without_effect() {
    for name in all().filter(|name| is_guard(name.variable) || is_guard(name.flag)) {
        assert!(!matches!(name.means, Means::Any), "{name:?}");
    }
    let told = parse("serve", &[], &with("DYN_SOMETHING_NEW", "1")).unwrap().given.notes;
    assert!(told[0].is_warning && told[0].text.contains("DYN_SOMETHING_NEW"), "{told:?}");
    for variable in ["DYN_NEW_TLS_MODE", "DYN_API_KEY", "DYN_AUTH", "DYN_KVBM_OBJECT_SECRET_KEY"] {
        let error = parse("serve", &[], &with(variable, "1")).unwrap_err();
        assert!(error.contains(variable), "{error}");
    }
    for (kin, says) in variables::FAMILIES {
        let error = parse("worker", &[], &with(&format!("{kin}X"), "1")).unwrap_err();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn values_are_read_as_the_other_server_means_them() {
    let table: [(&str, &str, &str, &str); 26] = [
        ("serve", "--tls-cert-path=a.pem", "", "tls-cert = \"a.pem\" # flag"),
        (
            "serve",
            "",
            "DYN_TLS_CERT_PATH=a.pem",
            "tls-cert = \"a.pem\" # environment DYN_TLS_CERT_PATH",
        ),
        ("serve", "", "DYN_HTTP_BODY_LIMIT_MB=45", "http-max-input-bytes = 47185920"),
        ("serve", "", "DYN_HTTP_GRACEFUL_SHUTDOWN_TIMEOUT_SECS=2.5", "shutdown-grace-ms = 2500"),
        ("serve", "", "DYN_HTTP_SVC_LIVE_PATH=/l", "openai-path = [\"live=/l\"]"),
        ("serve", "", "DYN_HTTP_SVC_CMP_PATH_ENV=/c", "openai-path = [\"completions=/c\"]"),
        ("serve", "", "DYN_LOGGING_JSONL=1", "log-format = \"json\""),
        ("serve", "--grpc-metrics-port=9", "", "metrics-port = 9"),
        ("serve", "--allow-http=false", "", "no-http = true"),
        ("serve", "--allow-http=1", "", "# `--allow-http` = `true` holds here anyway"),
        ("serve", "--exit-on-error", "", "exit-on-error = true # flag"),
        ("serve", "--exit-on-error=1", "", "exit-on-error = true # flag"),
        ("serve", "--exit-on-error=false", "", "# `--exit-on-error` = `false` holds here anyway"),
        ("serve", "--exit-timeout-secs=3", "", "shutdown-grace-ms = 3000"),
        ("serve", "--log-format=ISO8601", "", "log-format = \"text\" # flag"),
        ("frontend", "--no-router-kv-events", "", "no-router-kv-events = true # flag"),
        (
            "frontend",
            "",
            "DYN_ROUTER_TTL_SECS=90.0",
            "router-ttl-secs = 90 # environment DYN_ROUTER_TTL_SECS",
        ),
        ("serve", "--log-format=json", "", "log-format = \"json\" # flag"),
        ("frontend", "--router-mode=round-robin", "", "router-mode = \"round-robin\" # flag"),
        ("frontend", "--request-plane=tcp", "", "request-plane = \"grpc\" # flag"),
        ("frontend", "--request-plane=nats", "NATS_SERVER=nats://a", "request-plane = \"nats\""),
        ("frontend", "--active-decode-blocks-threshold=None", "", "holds here anyway"),
        (
            "frontend",
            "--discovery-backend=etcd",
            "ETCD_ENDPOINTS=http://a:1,http://b:2",
            "discovery = \"etcd://a:1,b:2\" # flag --discovery-backend",
        ),
        ("worker", "", "DYN_DISCOVERY_BACKEND=file", "discovery = \"file:///"),
        ("serve", "--discovery-backend=mem", "", "`--discovery-backend` = `mem` holds here anyway"),
        ("worker", "", "DYN_HTTP_PORT=1", "which `stator worker` has not; it has no effect"),
    ];
    for (role, flag, variable, expected) in table {
        let args: Vec<String> =
            Some(flag.to_owned()).filter(|flag| !flag.is_empty()).into_iter().collect();
        let (name, value) = variable.split_once('=').unwrap_or_default();
        let parsed = parse(role, &args, &with(name, value)).unwrap();
        let text = parsed.given.dump(role, &[]);
        assert!(text.contains(expected), "{role} {flag} {variable}: {text}");
    }
}

#[test]
fn what_has_no_place_here_stops_the_start() {
    let table: [(&str, &[&str], &str, &str); 16] = [
        ("frontend", &["--router-mode", "direct"], "", "the modes here are"),
        ("frontend", &["--router-mode"], "", "needs a value"),
        ("frontend", &["-i"], "", "stator chat"),
        ("serve", &["--no-kserve-grpc-server"], "", "gRPC is always served"),
        ("serve", &["--kserve-grpc-server=maybe"], "", "expected true or false"),
        ("worker", &["--tls-key-path", "a"], "", "our `--tls-key`, which `stator worker` has not"),
        (
            "worker",
            &[],
            "DYN_TLS_CERT_PATH=a.pem",
            "our `--tls-cert`, which `stator worker` has not",
        ),
        ("serve", &[], "DYN_HTTP_BODY_LIMIT_MB=many", "expected a number"),
        ("serve", &[], "DYN_HTTP_PORT=many", "invalid value 'many'"),
        ("worker", &[], "DYN_DISCOVERY_BACKEND=mem", "stator serve"),
        ("worker", &[], "DYN_DISCOVERY_BACKEND=kubernetes", "POD_NAMESPACE"),
        ("serve", &["--grpc-use-ssl=true"], "", "--tls-cert"),
        ("serve", &["--discovery-backend=etcd"], "", "which `stator serve` has not"),
        ("serve", &["--backend-directory=x"], "", "Usage: stator serve [OPTIONS]"),
        (
            "serve",
            &["--id=a", "--server-name", "b"],
            "",
            "`--id` and `--server-name` are names of one setting, `--server-name`",
        ),
        (
            "serve",
            &["--http-max-input-bytes=5", "--http-max-input-size", "6"],
            "",
            "`--http-max-input-bytes` and `--http-max-input-size` are names of one setting",
        ),
    ];
    for (role, args, variable, expected) in table {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let (name, value) = variable.split_once('=').unwrap_or_default();
        let error = parse(role, &args, &with(name, value)).unwrap_err();
        assert!(error.contains(expected), "{role} {args:?} {variable}: {error}");
    }
    let spaced = ["--exit-on-error", "false", "--exit-on-error", "true", "a.gguf"];
    let parsed = parse("serve", &spaced.map(str::to_owned), &Environment::new()).unwrap();
    assert!(parsed.given.dump("serve", &[]).contains("exit-on-error = true # flag"));
    let two = [("DYN_SYSTEM_PORT", "1"), ("DYN_GRPC_METRICS_PORT", "2")];
    let two = two.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    assert!(parse("serve", &[], &two).unwrap_err().contains("different values"));
    assert!(of_variable("DYN_HTTP_PORT_ENV").is_none());
    assert_eq!(triton::NAMES[0].flag, "id");
}
