//! Which source of a setting wins, and what a bad one gets.

use super::*;

fn parse(args: &[&str], alias: Option<&str>) -> Result<(ServeArgs, Given), String> {
    let args = ["stator", "serve"].iter().chain(args).map(OsString::from);
    let name = || "DYN_GRPC_INITIAL_STREAM_WINDOW_SIZE".to_owned();
    let environment = alias.map(|value| (name(), value.to_owned())).into_iter().collect();
    let parsed = parse_from(args, &environment).map_err(|error| error.to_string())?;
    match parsed.action {
        Action::Serve(serve) => Ok((*serve, parsed.given)),
        other => Err(format!("{other:?} is not `serve`")),
    }
}

fn empty() -> Environment {
    Environment::new()
}

/// A configuration file, which is removed with this.
struct File(tempfile::NamedTempFile);

impl std::ops::Deref for File {
    type Target = str;

    fn deref(&self) -> &str {
        self.0.path().to_str().unwrap()
    }
}

fn file(text: &str) -> File {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    File(file)
}

#[test]
fn a_flag_beats_the_alias_which_beats_the_file_which_beats_the_default() {
    let path = file("grpc-port = 9001\ngrpc-stream-window-bytes = 70000\n");
    let (args, _) = parse(&["--config", &path], None).unwrap();
    assert_eq!((args.grpc.grpc_port, args.grpc.grpc_stream_window_bytes), (9001, 70_000));
    let (args, _) = parse(&["--config", &path], Some("80000")).unwrap();
    assert_eq!(args.grpc.grpc_stream_window_bytes, 80_000);
    let flags = ["--config", &path, "--grpc-stream-window-bytes", "90000", "--grpc-port", "1"];
    let (args, _) = parse(&flags, Some("80000")).unwrap();
    assert_eq!((args.grpc.grpc_port, args.grpc.grpc_stream_window_bytes), (1, 90_000));
}

#[test]
fn a_value_that_does_not_parse_stops_the_start_wherever_it_is_from() {
    let unknown = file("grpc-prot = 1\n");
    let wrong = file("grpc-port = \"many\"\n");
    let broken = file("grpc-port = = 1\n");
    let table: [(&[&str], Option<&str>, &str); 6] = [
        (&["--config", &unknown], None, "no setting is called `grpc-prot`"),
        (&["--config", &wrong], None, "invalid value 'many'"),
        (&["--config", &broken], None, "is not TOML"),
        (&["--config", "/nowhere/stator.toml"], None, "cannot read"),
        (&[], Some("a lot"), "invalid value 'a lot'"),
        (&["--grpc-stream-window-bytes", "1"], None, "1 is not in"),
    ];
    for (args, alias, expected) in table {
        let error = parse(args, alias).unwrap_err();
        assert!(error.contains(expected), "{args:?}: {error}");
    }
}

#[test]
fn the_dump_is_a_file_that_gives_the_same_configuration() {
    let args = ["--grpc-port", "9", "--builtin", "identity", "--log-level", "debug", "a=b.gguf"];
    let (_, given) = parse(&args, None).unwrap();
    let text = given.dump("serve", &[("max-buffered-mib", "4096".to_owned())]);
    assert!(text.contains("# max-buffered-mib = 4096 # computed for this machine\n"), "{text}");
    assert!(text.contains("grpc-port = 9 # flag\n"), "{text}");
    assert!(text.contains("metrics-port = 8002 # default\n"), "{text}");
    let (args, given) = parse(&["--config", &file(&text)], None).unwrap();
    assert_eq!((args.grpc.grpc_port, args.models.builtin), (9, vec!["identity".to_owned()]));
    assert_eq!(args.models.models, ["a=b.gguf"]);
    assert!(given.dump("serve", &[]).contains("grpc-port = 9 # file\n"));
}

#[test]
fn the_dump_names_what_gave_a_value() {
    let file = file("grpc-stream-window-bytes = 70000\nhttp-port = 9\n");
    let args = ["--config", &file, "--id", "a", "--http-max-input-size=1000", "--log-level=debug"];
    let (_, given) = parse(&args, Some("80000")).unwrap();
    let text = given.dump("serve", &[]);
    for line in [
        "server-name = \"a\" # flag --id\n",
        "http-max-input-bytes = 1000 # flag --http-max-input-size\n",
        "log-level = \"debug\" # flag\n",
        "http-port = 9 # file\n",
        "grpc-stream-window-bytes = 80000 # environment DYN_GRPC_INITIAL_STREAM_WINDOW_SIZE\n",
        "http-host = \"0.0.0.0\" # default\n",
    ] {
        assert!(text.contains(line), "{line}{text}");
    }
}

#[test]
fn every_role_has_its_own_flags_and_defaults() {
    let parse = |args: &[&str]| {
        let args = std::iter::once(&"stator").chain(args).map(OsString::from);
        let moved = ("DYN_HTTP_SVC_CHAT_PATH".to_owned(), "/moved".to_owned());
        parse_from(args, &[moved].into()).map_err(|error| error.to_string())
    };
    let path = file("metrics-host = \"::1\"\nnamespace = \"blue\"\n");
    let Action::Worker(worker) = parse(&["worker", "a.gguf", "--config", &path]).unwrap().action
    else {
        panic!("it is a worker");
    };
    let ports = (worker.process.metrics_port, worker.process.metrics_host.as_str());
    assert_eq!((ports, worker.namespace.as_str()), ((0, "::1"), "blue"));
    assert_eq!(worker.models.models, ["a.gguf"]);
    let unmoved = parse_from(["stator", "frontend"].map(OsString::from), &empty()).unwrap().action;
    let Action::Frontend(frontend) = unmoved else { panic!("it is a frontend") };
    assert_eq!((frontend.process.metrics_port, frontend.grpc.grpc_port), (8002, 8001));
    let wrong = parse(&["frontend", "--threads", "1"]).unwrap_err();
    assert!(wrong.contains("--threads"), "{wrong}");
    let models = file("models = [\"a.gguf\"]\n");
    let args = ["stator", "frontend", "--config", &models].map(OsString::from);
    let wrong = parse_from(args, &empty()).unwrap_err().to_string();
    assert!(wrong.contains("no setting is called `models`"), "{wrong}");
}

#[test]
fn nothing_polls_unless_it_is_asked_for() {
    for role in ["serve", "frontend", "worker"] {
        let args = ["stator", role].map(OsString::from);
        let given = parse_from(args, &empty()).unwrap().given;
        assert!(given.dump(role, &[]).contains("busy-poll-us = 0 # default\n"), "{role}");
    }
}

#[test]
fn the_dump_tells_no_secret() {
    let (_, given) = parse(&["--http-restricted-api", "logging:key=s3cret"], None).unwrap();
    let text = given.dump("serve", &[]);
    assert!(text.contains("# http-restricted-api is set") && !text.contains("s3cret"), "{text}");
}

#[test]
fn a_fleet_passes_on_what_each_role_knows() {
    let path = file("router-mode = \"round-robin\"\nbatch-tokens = 600\nno-metrics = true\n");
    let args = ["stator", "up", "--workers", "3", "a=b.gguf", "--http-port=9", "--config", &path];
    let rest = ["--builtin", "mock", "--grpc-restricted-protocol", "health:a=b"];
    let args = args.into_iter().chain(rest).map(OsString::from);
    let matches = parse_from(args, &empty()).unwrap().given.matches;
    let worker = passed("worker", &matches, &[]);
    let expected = ["--builtin=mock", "--batch-tokens=600", "--no-metrics", "--", "a=b.gguf"];
    assert_eq!(worker, Passed { flags: expected.map(str::to_owned).into(), variables: vec![] });
    let frontend = passed("frontend", &matches, &["no_metrics"]);
    assert_eq!(frontend.flags, ["--router-mode=round-robin", "--http-port=9"]);
    let secret = ("STATOR_GRPC_RESTRICTED_PROTOCOL".to_owned(), "health:a=b".to_owned());
    assert_eq!(frontend.variables, [secret]);
}

#[test]
fn workers_of_one_machine_are_not_pinned_to_the_same_cores() {
    let made = |workers: &[&str]| {
        let args = ["stator", "up", "--pin-threads", "--log-dir=/nowhere"].iter().chain(workers);
        let parsed = parse_from(args.map(OsString::from), &empty()).unwrap();
        let (action, matches) = (parsed.action, parsed.given.matches);
        let Action::Up(args) = action else { panic!("it is a fleet") };
        crate::roles::up::UpConfig::from_args(&args, &matches).map_err(|error| error.to_string())
    };
    assert!(made(&["--workers=1"]).is_ok());
    for workers in [&[][..], &["--workers=2"], &["--prefill-workers=1", "--decode-workers=1"]] {
        assert!(made(workers).unwrap_err().contains("--pin-threads"), "{workers:?}");
    }
}

#[test]
fn the_command_is_sound() {
    command().debug_assert();
}

/// Returns the reference of all settings in Markdown, from what the command says of itself.
fn reference() -> String {
    let command = command();
    let serve = command.find_subcommand("serve").unwrap();
    let mut out = String::from(INTRODUCTION);
    let headings = [
        "Models",
        "Shared memory",
        "gRPC",
        "HTTP",
        "KServe",
        "OpenAI",
        "Security",
        "Engine",
        "Admission",
        "Traces",
        "Process",
    ];
    for heading in headings {
        let args = serve.get_arguments().filter(|arg| arg.get_help_heading() == Some(heading));
        out += &format!("\n## {heading}\n\n{}", table(args));
    }
    for (role, text) in [("up", UP), ("worker", WORKER), ("frontend", FRONTEND)] {
        let command = command.find_subcommand(role).unwrap();
        let is_own = |arg: &&clap::Arg| {
            let own = ["Fleet", "Worker", "Mock", "Upstream", "Frontend"];
            let heading = arg.get_help_heading();
            match role {
                "up" => heading == Some("Fleet"),
                _ => heading.is_some_and(|heading| own.contains(&heading)),
            }
        };
        out += text;
        out += &table(command.get_arguments().filter(is_own));
    }
    let frontend = command.find_subcommand("frontend").unwrap();
    let of_router = |arg: &&clap::Arg| arg.get_help_heading() == Some("Router");
    out += ROUTER;
    out += &table(frontend.get_arguments().filter(of_router));
    let chat = command.find_subcommand("chat").unwrap();
    let bench = command.find_subcommand("bench").unwrap().find_subcommand("engine").unwrap();
    let doctor = command.find_subcommand("doctor").unwrap();
    let doctor = doctor.get_arguments().filter(|arg| arg.get_help_heading().is_none());
    out + CHAT
        + &table(chat.get_arguments())
        + BENCH
        + &table(bench.get_arguments())
        + DOCTOR
        + &table(doctor)
}

/// Returns a table of flags.
fn table<'a>(args: impl Iterator<Item = &'a clap::Arg>) -> String {
    let mut out = String::from("| flag | variable | default | |\n|---|---|---|---|\n");
    for arg in args {
        let Some(flag) = arg.get_long() else { continue };
        let variable = arg.get_env().map(|name| format!("`{}`", name.to_string_lossy()));
        let defaults: Vec<_> =
            arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let default = match defaults.is_empty() {
            true => String::new(),
            false => format!("`{}`", defaults.join(",")),
        };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let help = help.replace('\n', " ");
        let variable = variable.unwrap_or_default();
        out += &format!("| `--{flag}` | {variable} | {default} | {help} |\n");
    }
    out
}

const UP: &str = "
## stator up

`stator up [MODEL …]` runs workers and a frontend as processes of this machine: [deploy.md](deploy.md). It takes the flags of `stator serve`,
those of Frontend below but the ones that say which workers are called, and these:

";

const WORKER: &str = "
## stator worker

`stator worker [MODEL …]` computes models for frontends: [deploy.md](deploy.md). It takes the flags of Models, Engine and Process and the two
formats of OpenAI as above, but that its metrics take a free port, and these:

";

const FRONTEND: &str = "
## stator frontend

`stator frontend` serves the models of workers. It takes the flags of Shared memory, gRPC, HTTP, OpenAI without the two formats, Security,
Admission, Traces and Process as above, and these:

";

const ROUTER: &str = "
## Router

These flags of `stator frontend` and `stator up` choose the worker for a request: [router.md](router.md).

";

const CHAT: &str = "
## stator chat

`stator chat [URL]` talks with a running server over its HTTP door, by default `http://localhost:8000` (variable `STATOR_URL`); of
its commands: [chat.md](chat.md). Its flags stand in no file.

";

const BENCH: &str = "
## stator bench engine

`stator bench engine [MODEL]` measures a GGUF file or a directory, by default the default model, without a server: prefill and decode,
the memory's read bandwidth, and the share of it that decoding alone reaches. Of the engine: [engine.md](engine.md).

";

const DOCTOR: &str = "
## stator doctor

`stator doctor` says what this machine has, whether the ports are free, and whether the fleet's registrations and NATS can be reached, with
what to do about the rest. It ends with status 1 if the store or NATS does not answer or a port cannot be opened; a taken port is a warning. It takes the flags of Fleet, and these:

";

const INTRODUCTION: &str = "\
# Configuration

`stator serve [MODEL …]`: a MODEL is a GGUF file, a directory of safetensors, `NAME=FILE`, or a Hugging Face id such as `OWNER/REPOSITORY` or
`OWNER/REPOSITORY:FILE.gguf` (also with `NAME=`); the variable is `STATOR_MODELS`, separated by commas.

A flag beats its variable, which beats a variable of Dynamo's, which beats the TOML file of `--config`, which beats the default. In the
file a setting is called as its flag, without dashes in front: `grpc-port = 9001`. `--dump-config` prints the configuration in force with
the origin of each value, as such a file. A value that cannot be used stops the start. Names of Dynamo and of Triton are read too:
[guides/from-dynamo.md](guides/from-dynamo.md), [guides/from-triton.md](guides/from-triton.md). Of RPCs and tensors:
[protocol.md](protocol.md).

`stator key NAME` makes an API key; `--scopes` says what it may be used for and `--models` of which models, both separated by commas:
[security.md](security.md).
";

#[test]
fn the_reference_is_what_the_command_says() {
    let reference = reference();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
    let written = std::fs::read_to_string(file).unwrap_or_default();
    assert!(written == reference, "docs/configuration.md should read:\n\n{reference}");
}

#[test]
fn processes_of_a_local_fleet_take_no_settings_from_the_environment_that_are_not_theirs() {
    let of = |role| -> Vec<String> {
        let names = withheld(role, &["worker_address"]);
        names.into_iter().map(|name| name.into_string().unwrap()).collect()
    };
    let has = |names: &[String], name: &str| names.iter().any(|one| one == name);
    let worker = of("worker");
    for name in ["STATOR_DISCOVERY", "STATOR_WORKER_ADDRESS", "STATOR_NATS", "STATOR_UPSTREAM"] {
        assert!(has(&worker, name), "{name}: {worker:?}");
    }
    assert!(!has(&worker, "STATOR_THREADS"));
    assert!(has(&of("frontend"), "STATOR_NAMESPACE"));
    assert!(!has(&of("frontend"), "STATOR_GRPC_PORT"));
}
