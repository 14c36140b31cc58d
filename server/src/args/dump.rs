//! The configuration in force, written as a file that gives it again.

use clap::parser::ValueSource;

use super::Given;

impl Given {
    /// Returns a role's configuration in force as a TOML file, with the origin of each value, and
    /// what there is to say of names that are not ours. `computed` has the values of settings that
    /// nobody gave and that depend on the machine; the file has them as comments.
    pub fn dump(&self, role: &str, computed: &[(&str, String)]) -> String {
        let command = super::command();
        let Some(role) = command.find_subcommand(role) else {
            return String::new();
        };
        let notes = self.notes.iter().map(|note| format!("# {}\n", note.text.replace('\n', " ")));
        let mut out: String = notes.collect();
        for arg in role.get_arguments() {
            let id = arg.get_id().as_str();
            if super::NO_SETTINGS.contains(&id) {
                continue;
            }
            let key = id.replace('_', "-");
            let Ok(Some(values)) = self.matches.try_get_raw(id) else {
                if let Some((_, value)) = computed.iter().find(|(name, _)| *name == key) {
                    out.push_str(&format!("# {key} = {value} # computed for this machine\n"));
                }
                continue;
            };
            if arg.is_hide_env_values_set() {
                out.push_str(&format!("# {key} is set; it holds a secret\n"));
                continue;
            }
            let values: Vec<String> = values.map(|value| value.to_string_lossy().into()).collect();
            let origin = self.origin(id);
            let is_list = arg.get_num_args().is_some_and(|n| n.max_values() > 1)
                || matches!(arg.get_action(), clap::ArgAction::Append);
            let shown = if is_list {
                toml::Value::Array(values.into_iter().map(toml::Value::String).collect())
            } else {
                typed(values.into_iter().next().unwrap_or_default())
            };
            out.push_str(&format!("{key} = {shown} # {origin}\n"));
        }
        out
    }

    /// Returns where a setting's value is from.
    fn origin(&self, id: &str) -> String {
        let name = self.origins.get(id).map(String::as_str);
        match (self.matches.value_source(id), name) {
            (Some(ValueSource::CommandLine), Some(flag)) if flag.starts_with('-') => {
                format!("flag {flag}")
            }
            (Some(ValueSource::CommandLine), _) => "flag".to_owned(),
            (Some(ValueSource::EnvVariable), _) => "environment".to_owned(),
            (_, Some(name)) => match name.starts_with("DYN_") {
                true => format!("environment {name}"),
                false => name.to_owned(),
            },
            _ => "default".to_owned(),
        }
    }
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
