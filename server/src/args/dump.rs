//! The configuration in force, written as a file that gives it again.

use clap::ArgMatches;
use clap::parser::ValueSource;

use super::Note;

/// Returns a role's configuration in force as a TOML file, with the origin of each value, and what
/// there is to say of names that are not ours.
pub fn dump(role: &str, matches: &ArgMatches, notes: &[Note]) -> String {
    let command = super::command();
    let Some(role) = command.find_subcommand(role) else {
        return String::new();
    };
    let notes = notes.iter().map(|note| format!("# {}\n", note.text.replace('\n', " ")));
    let mut out: String = notes.collect();
    for arg in role.get_arguments() {
        let id = arg.get_id().as_str();
        if super::NO_SETTINGS.contains(&id) {
            continue;
        }
        let Ok(Some(values)) = matches.try_get_raw(id) else {
            continue;
        };
        if arg.is_hide_env_values_set() {
            out.push_str(&format!("# {} is set; it holds a secret\n", id.replace('_', "-")));
            continue;
        }
        let values: Vec<String> = values.map(|value| value.to_string_lossy().into()).collect();
        let origin = match matches.value_source(id) {
            Some(ValueSource::CommandLine) => "flag",
            Some(ValueSource::EnvVariable) => "environment",
            _ if is_changed(arg, &values) => "file or alias",
            _ => "default",
        };
        let is_list = arg.get_num_args().is_some_and(|n| n.max_values() > 1)
            || matches!(arg.get_action(), clap::ArgAction::Append);
        let shown = if is_list {
            toml::Value::Array(values.into_iter().map(toml::Value::String).collect())
        } else {
            typed(values.into_iter().next().unwrap_or_default())
        };
        out.push_str(&format!("{} = {shown} # {origin}\n", id.replace('_', "-")));
    }
    out
}

/// Returns whether a setting has other values than its defaults.
pub(super) fn is_changed(arg: &clap::Arg, values: &[String]) -> bool {
    let defaults: Vec<_> = arg.get_default_values().iter().map(|v| v.to_string_lossy()).collect();
    let is_flag = arg.get_default_values().is_empty();
    !(defaults == values || (is_flag && values == ["false"]))
}

fn typed(value: String) -> toml::Value {
    match (value.parse::<i64>(), value.parse::<bool>()) {
        (Ok(number), _) => toml::Value::Integer(number),
        (_, Ok(flag)) => toml::Value::Boolean(flag),
        _ => toml::Value::String(value),
    }
}
