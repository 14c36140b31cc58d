//! Puts our settings in place of the names of others, in the command line and from the environment.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::{Arg, ArgAction, Command};

use super::{Means, Name, Reading, Takes, all, variables};

/// The variables of the process.
pub(in crate::args) type Environment = BTreeMap<String, String>;

/// What the log is to say about a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The name, the value where it matters, and a sentence.
    pub text: String,
    /// Whether an operator should look at it.
    pub is_warning: bool,
}

/// Values of our settings, by their ids.
type Settings = BTreeMap<String, Vec<String>>;

/// The names of others that gave our settings, by the settings' ids.
pub(in crate::args) type Origins = BTreeMap<String, String>;

/// What a name comes to: settings of ours, and a note.
type Applied = (Vec<(String, String)>, Option<Note>);

/// Words of names by which a server is kept from others: none of them may be without effect.
const GUARDS: [&str; 14] = [
    "TLS",
    "MTLS",
    "SSL",
    "CERT",
    "CA",
    "KEY",
    "AUTH",
    "TOKEN",
    "SECRET",
    "PASSWORD",
    "CREDENTIALS",
    "INSECURE",
    "ADMIN",
    "RESTRICTED",
];

/// Returns whether a name is of those by which a server is kept from others.
pub(super) fn is_guard(name: &str) -> bool {
    name.split(['_', '-']).any(|word| GUARDS.contains(&word.to_ascii_uppercase().as_str()))
}

/// The role that is started, and what is known of it.
struct Reader<'a> {
    command: &'a Command,
    role: &'a str,
    environment: &'a Environment,
}

/// A command line with our flags in place of others' names.
#[derive(Default)]
pub(in crate::args) struct Flags {
    pub args: Vec<OsString>,
    pub notes: Vec<Note>,
    pub origins: Origins,
}

/// Puts our flags in place of others' names.
///
/// Errors: a sentence for a name or a value that has no place here, and for a setting that two
/// names give.
pub(in crate::args) fn read_flags(
    args: Vec<OsString>,
    command: &Command,
    (role, environment): (&str, &Environment),
) -> Result<Flags, String> {
    let reader = Reader { command, role, environment };
    let (mut out, mut notes) = (Vec::with_capacity(args.len()), Vec::new());
    let mut origins = Origins::new();
    // How each setting is spelled.
    let mut spellings = BTreeMap::new();
    let mut args = args.into_iter().peekable();
    while let Some(arg) = args.next() {
        let text = arg.to_str().unwrap_or_default();
        if text == "--" {
            out.push(arg);
            break;
        }
        let Some((name, is_on)) = reader.of_flag(text) else {
            if let Some(id) = reader.own_id(text) {
                let spelling = text.split('=').next().unwrap_or_default();
                reader.spell(&mut spellings, id, spelling)?;
            }
            out.push(arg);
            continue;
        };
        let (shown, given) = match text.split_once('=') {
            Some((shown, given)) => (shown, Some(given.to_owned())),
            None => (text, None),
        };
        let shown = shown.to_owned();
        let own = name.flag.replace('-', "_");
        let is_truth = |next: &OsString| next.to_str().and_then(truth).is_some();
        let given = match (given, name.takes) {
            (Some(given), _) => given,
            (None, Takes::Nothing) => is_on.to_string(),
            // A switch of ours, behind which no value has to stand.
            (None, Takes::Bool) if reader.is_switch(&own) && !args.peek().is_some_and(is_truth) => {
                "true".to_owned()
            }
            (None, _) => {
                let next = args.next().ok_or_else(|| format!("`{shown}` needs a value"))?;
                next.into_string().map_err(|_| format!("the value of `{shown}` is no text"))?
            }
        };
        let given = if is_on { given } else { "false".to_owned() };
        let (mut settings, note) = reader.apply(name, &shown, &given)?;
        if reader.argument(&own).is_some() {
            // One of ours: what Dynamo has in variables beside it is not asked for.
            settings.retain(|(id, _)| *id == own);
        }
        for (id, value) in settings {
            out.push(reader.spelled(&id, &value));
            reader.spell(&mut spellings, id.clone(), &shown)?;
            if shown != format!("--{}", id.replace('_', "-")) {
                origins.insert(id, shown.clone());
            }
        }
        notes.extend(note);
    }
    out.extend(args);
    Ok(Flags { args: out, notes, origins })
}

/// The settings that variables of Dynamo stand for.
#[derive(Default)]
pub(in crate::args) struct Variables {
    pub settings: Settings,
    pub notes: Vec<Note>,
    pub origins: Origins,
}

/// Returns the settings that variables of Dynamo stand for.
///
/// Errors: a sentence for a variable or a value that has no place here.
pub(in crate::args) fn read_variables(
    command: &Command,
    (role, environment): (&str, &Environment),
) -> Result<Variables, String> {
    let reader = Reader { command, role, environment };
    let Variables { mut settings, mut notes, mut origins } = Variables::default();
    let set = environment
        .iter()
        .filter(|(name, value)| name.starts_with("DYN_") && !value.trim().is_empty());
    for (variable, value) in set {
        let (found, note) = match of_variable(variable) {
            Some(name) => reader.apply(name, variable, value)?,
            None => (Vec::new(), Some(unknown(variable)?)),
        };
        notes.extend(note);
        for (id, value) in found {
            let before = origins.insert(id.clone(), variable.clone());
            let values: &mut Vec<String> = settings.entry(id.clone()).or_default();
            if values.contains(&value) {
                continue;
            }
            if let Some(other) = before.filter(|_| !reader.is_list(&id)) {
                let text = format!("`{other}` and `{variable}` give `--{}`", id.replace('_', "-"));
                return Err(format!("{text} different values"));
            }
            values.push(value);
        }
    }
    Ok(Variables { settings, notes, origins })
}

/// Says what there is to say of a variable that no table has.
fn unknown(variable: &str) -> Result<Note, String> {
    if let Some((_, says)) = variables::FAMILIES.iter().find(|(kin, _)| variable.starts_with(kin)) {
        return Err(format!("`{variable}`: {says}"));
    }
    if is_guard(variable) {
        let text = "no such setting is known here, and its name says that it keeps others out";
        return Err(format!("`{variable}`: {text}; take it away, or use a flag of `--help`"));
    }
    let text = format!("`{variable}`: no such setting is known here; it has no effect");
    Ok(Note { text, is_warning: true })
}

/// Returns the row of a variable. Dynamo's documents print those of paths with `_ENV` at the end.
pub(super) fn of_variable(variable: &str) -> Option<&'static Name> {
    let is_path = variable.starts_with("DYN_HTTP_SVC_");
    let bare = variable.strip_suffix("_ENV").filter(|_| is_path).unwrap_or(variable);
    all().find(|name| name.variable == bare)
}

impl Reader<'_> {
    /// Returns the row of a flag, and whether it is switched on. Names that are ours and mean the
    /// same have no row.
    fn of_flag(&self, text: &str) -> Option<(&'static Name, bool)> {
        if text == "-i" {
            return self.of_flag("--interactive");
        }
        let flag = text.strip_prefix("--")?.split('=').next()?;
        if let Some(name) = all().find(|name| name.flag == flag) {
            return Some((name, true)).filter(|_| !self.is_as_here(name));
        }
        let flag = flag.strip_prefix("no-")?;
        let is_ours = self.argument(&format!("no_{}", flag.replace('-', "_"))).is_some();
        let of_switch = |name: &&Name| name.flag == flag && name.takes == Takes::Nothing;
        all().find(of_switch).filter(|_| !is_ours).map(|name| (name, false))
    }

    /// Returns whether a name and its values are ours, and need no other reading.
    fn is_as_here(&self, name: &Name) -> bool {
        match name.means {
            Means::Ours(ours, Reading::Same) if ours == name.flag => true,
            Means::Ours(ours, _) if ours == name.flag => false,
            _ => self.argument(&name.flag.replace('-', "_")).is_some(),
        }
    }

    fn arguments(&self) -> impl Iterator<Item = &Arg> {
        self.command.find_subcommand(self.role).into_iter().flat_map(Command::get_arguments)
    }

    fn argument(&self, id: &str) -> Option<&Arg> {
        self.arguments().find(|arg| arg.get_id() == id)
    }

    /// Returns the id of our flag with this name or alias.
    fn own_id(&self, text: &str) -> Option<String> {
        let flag = text.strip_prefix("--")?.split('=').next()?;
        let is_called = |arg: &&Arg| {
            arg.get_long() == Some(flag)
                || arg.get_all_aliases().unwrap_or_default().contains(&flag)
        };
        self.arguments().find(is_called).map(|arg| arg.get_id().as_str().to_owned())
    }

    /// Notes how a setting is spelled.
    ///
    /// Errors: it was given before, by another name.
    fn spell(
        &self,
        spellings: &mut BTreeMap<String, String>,
        id: String,
        spelling: &str,
    ) -> Result<(), String> {
        if self.is_list(&id) {
            return Ok(());
        }
        let ours = format!("--{}", id.replace('_', "-"));
        match spellings.insert(id, spelling.to_owned()) {
            Some(other) if other != spelling => Err(format!(
                "`{other}` and `{spelling}` are names of one setting, `{ours}`; give one of them"
            )),
            _ => Ok(()),
        }
    }

    fn is_list(&self, id: &str) -> bool {
        self.argument(id).is_some_and(|arg| matches!(arg.get_action(), ArgAction::Append))
    }

    fn is_switch(&self, id: &str) -> bool {
        self.argument(id).is_some_and(|arg| matches!(arg.get_action(), ArgAction::SetTrue))
    }

    /// Returns our flag with a value, as it stands in a command line.
    fn spelled(&self, id: &str, value: &str) -> OsString {
        let long = id.replace('_', "-");
        match self.is_switch(id) {
            true => format!("--{long}").into(),
            false => format!("--{long}={value}").into(),
        }
    }

    /// Returns what a name with a value comes to.
    fn apply(&self, name: &Name, shown: &str, given: &str) -> Result<Applied, String> {
        let value = match name.takes {
            Takes::Value => given.to_owned(),
            Takes::Nothing | Takes::Bool => truth(given)
                .ok_or_else(|| format!("`{shown}`: expected true or false, got `{given}`"))?
                .to_string(),
        };
        let says = name.says;
        let note = |text: String| Some(Note { text, is_warning: false });
        let refusal = || format!("`{shown}` = `{value}`: {says}");
        match &name.means {
            Means::Any => Ok((Vec::new(), note(format!("`{shown}`: {says}")))),
            Means::Only(known) if known.contains(&value.as_str()) => {
                Ok((Vec::new(), note(format!("`{shown}` = `{value}` holds here anyway"))))
            }
            Means::Only([]) => Err(format!("`{shown}`: {says}")),
            Means::Only(_) => Err(refusal()),
            Means::Ours(ours, reading) => {
                let id = ours.replace('-', "_");
                let mut settings = self.read(&id, reading, &value).map_err(|why| match why {
                    Some(why) => format!("`{shown}`: {why}"),
                    None => refusal(),
                })?;
                if settings.is_empty() {
                    let text = format!("`{shown}` = `{value}` holds here anyway");
                    return Ok((settings, note(text)));
                }
                if self.argument(&id).is_some() {
                    settings.retain(|(id, _)| self.argument(id).is_some());
                    return Ok((settings, None));
                }
                let text =
                    format!("`{shown}` is our `--{ours}`, which `stator {}` has not", self.role);
                match shown.starts_with('-') || is_guard(shown) {
                    true => Err(text),
                    false => Ok((Vec::new(), note(format!("{text}; it has no effect")))),
                }
            }
        }
    }

    /// Returns the settings of ours that a value stands for.
    ///
    /// Errors: what is wrong with it; none is what the row says.
    fn read(
        &self,
        id: &str,
        reading: &Reading,
        value: &str,
    ) -> Result<Vec<(String, String)>, Option<String>> {
        let one = |value: String| Ok(vec![(id.to_owned(), value)]);
        match reading {
            Reading::Same => one(value.to_owned()),
            Reading::Unless(nothing) if value.eq_ignore_ascii_case(nothing) => Ok(Vec::new()),
            Reading::Unless(_) => one(value.to_owned()),
            Reading::Times(factor) => {
                let number: f64 = value.parse().unwrap_or(f64::NAN);
                let product = number * f64::from(*factor);
                match product.is_finite() && (0.0..9e15).contains(&product) {
                    true => one((product.round() as u64).to_string()),
                    false => Err(Some(format!("expected a number, got `{value}`"))),
                }
            }
            Reading::Choice(list) => match list.iter().find(|(theirs, _)| *theirs == value) {
                Some((_, Some(ours))) => one((*ours).to_owned()),
                Some((_, None)) => Ok(Vec::new()),
                None if self.is_possible(id, value) => one(value.to_owned()),
                None => Err(None),
            },
            Reading::On if value == "false" => Ok(Vec::new()),
            Reading::Off if value == "true" => Ok(Vec::new()),
            Reading::On | Reading::Off => one("true".to_owned()),
            Reading::Route(route) => one(format!("{route}={value}")),
            Reading::Discovery => self.discovery(value),
            Reading::Plane => self.plane(id, value),
        }
    }

    /// Returns whether a value is one of a setting's own.
    fn is_possible(&self, id: &str, value: &str) -> bool {
        let possible = self.argument(id).map(Arg::get_possible_values).unwrap_or_default();
        possible.iter().any(|one| one.matches(value, false))
    }

    fn variable(&self, name: &str) -> Option<&str> {
        self.environment.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Puts an address together from the variables that Dynamo has for each kind of discovery.
    fn discovery(&self, kind: &str) -> Result<Vec<(String, String)>, Option<String>> {
        let url = match kind {
            "etcd" => return self.etcd(),
            "file" => match self.variable("DYN_FILE_KV") {
                Some(folder) => format!("file://{folder}"),
                None => {
                    let folder = std::env::temp_dir().join("dynamo_store_kv");
                    format!("file://{}", folder.display())
                }
            },
            "kubernetes" => match self.variable("POD_NAMESPACE") {
                Some(namespace) => format!("kubernetes://{namespace}"),
                None => {
                    let text = "POD_NAMESPACE is not set; say `--discovery kubernetes://NAMESPACE`";
                    return Err(Some(text.to_owned()));
                }
            },
            // One process has nothing to discover.
            "mem" if self.role == "serve" => return Ok(Vec::new()),
            _ => return Err(None),
        };
        Ok(vec![("discovery".to_owned(), url)])
    }

    fn etcd(&self) -> Result<Vec<(String, String)>, Option<String>> {
        if self.variable("ETCD_AUTH_PASSWORD").is_some() {
            let text = "ETCD_AUTH_PASSWORD is not read; put the password into a file and name it by \
                        `--discovery-password-file`, with `--discovery etcd://HOST:PORT`";
            return Err(Some(text.to_owned()));
        }
        let endpoints = self.variable("ETCD_ENDPOINTS").unwrap_or("http://localhost:2379");
        let endpoints: Vec<&str> = endpoints.split(',').map(str::trim).collect();
        let is_secure = endpoints.iter().any(|one| one.starts_with("https://"));
        if is_secure && !endpoints.iter().all(|one| one.starts_with("https://")) {
            return Err(Some("ETCD_ENDPOINTS has servers with and without TLS".to_owned()));
        }
        let bare =
            |one: &str| one.rsplit("://").next().unwrap_or(one).trim_end_matches('/').to_owned();
        let hosts: Vec<String> = endpoints.into_iter().map(bare).collect();
        let scheme = if is_secure { "etcds" } else { "etcd" };
        let mut settings =
            vec![("discovery".to_owned(), format!("{scheme}://{}", hosts.join(",")))];
        let others = [
            ("ETCD_AUTH_USERNAME", "discovery_user"),
            ("ETCD_AUTH_CA", "discovery_tls_ca"),
            ("ETCD_AUTH_CLIENT_CERT", "discovery_tls_cert"),
            ("ETCD_AUTH_CLIENT_KEY", "discovery_tls_key"),
        ];
        settings.extend(others.into_iter().filter_map(|(variable, id)| {
            self.variable(variable).map(|value| (id.to_owned(), value.to_owned()))
        }));
        Ok(settings)
    }

    fn plane(&self, id: &str, value: &str) -> Result<Vec<(String, String)>, Option<String>> {
        if matches!(value, "tcp" | "zmq" | "http") {
            return Ok(vec![(id.to_owned(), "grpc".to_owned())]);
        }
        if value != "nats" {
            return if self.is_possible(id, value) {
                Ok(vec![(id.to_owned(), value.to_owned())])
            } else {
                Err(None)
            };
        }
        let secret = ["NATS_AUTH_PASSWORD", "NATS_AUTH_TOKEN", "NATS_AUTH_NKEY"];
        let server = self.variable("NATS_SERVER");
        if let Some(name) = secret.into_iter().find(|name| self.variable(name).is_some()) {
            let text = "is not read; put it into the address in STATOR_NATS, as \
                        nats://USER:PASSWORD@HOST:PORT or nats://TOKEN@HOST:PORT";
            return Err(Some(format!("{name} {text}")));
        }
        let mut settings = vec![(id.to_owned(), "nats".to_owned())];
        if let Some(server) = server.filter(|_| self.variable("STATOR_NATS").is_none()) {
            settings.push(("nats".to_owned(), server.to_owned()));
        }
        if let Some(file) = self.variable("NATS_AUTH_CREDENTIALS_FILE") {
            settings.push(("nats_credentials".to_owned(), file.to_owned()));
        }
        Ok(settings)
    }
}

/// Reads the spellings of a truth value that Dynamo and Triton have.
fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Some(true),
        "0" | "false" | "no" | "off" => Some(false),
        _ => None,
    }
}
