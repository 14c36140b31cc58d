//! What is callable, and what is said of what is not.

use engine::testing::Scripted;

use super::*;
use crate::models::loader::on_tensors;

fn model(name: &str, version: u64) -> Arc<Model> {
    let config = ModelConfig::new(name, 0, Vec::new(), Vec::new());
    let made = on_tensors(config, Default::default(), Arc::new(Scripted::new(Vec::new())));
    Arc::new(Model { version: version.to_string().into(), ..made.unwrap() })
}

/// Returns the versions of all names, with the words for their states.
fn listed(models: &Models) -> Vec<(u64, &'static str)> {
    models.list().iter().map(|(_, version, state)| (*version, state.spell().0)).collect()
}

#[test]
fn a_version_is_empty_or_a_plain_number() {
    let table = [
        ("", Some(None)),
        ("1", Some(Some(1))),
        ("0", Some(Some(0))),
        ("-1", None),
        ("+1", None),
        ("abc", None),
        ("1abc", None),
        ("99999999999999999999", None),
    ];
    for (text, expected) in table {
        assert_eq!(parse_version(text).ok(), expected, "{text}");
    }
}

#[test]
fn a_model_that_loads_is_known_and_not_ready() {
    let models = Models::default();
    assert!(models.are_ready(), "a server without models is ready");
    models.announce("m", &[1]);
    assert!(!models.are_ready());
    let kind = |name, version| models.get(name, version).unwrap_err().kind();
    assert_eq!(kind("m", ""), ErrorKind::Unavailable);
    assert_eq!(kind("m", "1"), ErrorKind::Unavailable);
    assert_eq!(kind("m", "7"), ErrorKind::NotFound);
    assert_eq!(kind("n", ""), ErrorKind::NotFound);
    assert_eq!(kind("m", "x"), ErrorKind::InvalidRequest);
    models.fail("m", "no file");
    assert!(models.are_ready(), "a model that failed holds nobody up");
    assert_eq!(kind("m", ""), ErrorKind::NotFound);
    assert_eq!(models.list()[0].2.spell(), ("UNAVAILABLE", "no file"));
}

#[tokio::test]
async fn a_version_that_failed_is_forgotten_when_others_are_loaded() {
    let models = Models::default();
    models.fail("m", "no file");
    assert_eq!(listed(&models), [(1, "UNAVAILABLE")]);
    models.unload("m");
    assert_eq!(listed(&models), [(1, "UNAVAILABLE")]);
    models.replace("m", vec![(3, model("m", 3))]);
    assert_eq!(listed(&models), [(3, "READY")]);
}

#[tokio::test]
async fn one_version_fails_alone() {
    let models = Models::default();
    models.announce("m", &[1, 2, 3]);
    models.serve("m", [(1, Some(model("m", 1))), (2, None), (3, None)].into());
    for version in [1, 2, 7] {
        models.fail_version("m", version, "no worker");
    }
    assert_eq!(listed(&models), [(1, "READY"), (2, "UNAVAILABLE"), (3, "LOADING")]);
}

#[tokio::test]
async fn versions_stay_until_those_that_come_have_a_model() {
    let models = Models::default();
    let (third, fourth) = (model("m", 3), model("m", 4));
    models.serve("m", [(3, Some(third.clone()))].into());
    models.serve("m", [(4, None)].into());
    assert_eq!(listed(&models), [(3, "READY"), (4, "LOADING")]);
    assert!(models.has("m", &third));
    models.serve("m", [(4, Some(fourth.clone()))].into());
    assert_eq!(listed(&models), [(4, "READY")]);
    assert!(Arc::ptr_eq(&models.get("m", "").unwrap(), &fourth) && !models.has("m", &third));
}
