//! Which source of a setting wins, and what a bad one gets.

use super::*;

fn parse(args: &[&str], alias: Option<&str>) -> Result<(ServeArgs, ArgMatches), String> {
    let args = ["stator", "serve"].iter().chain(args).map(OsString::from);
    let variable = |name: &str| {
        alias.filter(|_| name == "DYN_GRPC_INITIAL_STREAM_WINDOW_SIZE").map(OsString::from)
    };
    parse_from(args, variable).map_err(|error| error.to_string())
}

fn file(name: &str, text: &str) -> String {
    let path = std::env::temp_dir().join(format!("stator-args-{name}-{}", std::process::id()));
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_flag_beats_the_alias_which_beats_the_file_which_beats_the_default() {
    let path = file("order", "grpc-port = 9001\ngrpc-stream-window-bytes = 70000\n");
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
    let unknown = file("unknown", "grpc-prot = 1\n");
    let wrong = file("wrong", "grpc-port = \"many\"\n");
    let broken = file("broken", "grpc-port = = 1\n");
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
    let (_, matches) = parse(&args, None).unwrap();
    let text = dump(&matches);
    assert!(text.contains("grpc-port = 9 # flag\n"), "{text}");
    assert!(text.contains("metrics-port = 8002 # default\n"), "{text}");
    let (args, matches) = parse(&["--config", &file("dump", &text)], None).unwrap();
    assert_eq!((args.grpc.grpc_port, args.builtin), (9, vec!["identity".to_owned()]));
    assert_eq!(args.models, ["a=b.gguf"]);
    assert!(dump(&matches).contains("grpc-port = 9 # file or alias\n"));
}

#[test]
fn the_command_is_sound() {
    Cli::command().debug_assert();
}
