//! The guides for those who come from Dynamo or Triton, written from the tables.

use super::{Means, Name, Reading, Takes, dynamo, triton, variables};

/// Returns what a name is here, in a few words.
fn here(name: &Name) -> String {
    match &name.means {
        Means::Ours(ours, Reading::Route(route)) => format!("`--{ours} {route}=PATH`"),
        Means::Ours(ours, _) => format!("`--{ours}`"),
        Means::Any => "always so".to_owned(),
        Means::Only([]) => "refused".to_owned(),
        Means::Only(values) => {
            let values: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
            format!("only {}", values.join(", "))
        }
    }
}

/// Returns the table of the names that a filter takes.
fn table<'a>(names: impl Iterator<Item = &'a Name>) -> String {
    let mut out = String::from("| flag there | variable there | here | |\n|---|---|---|---|\n");
    for name in names {
        let flag = match (name.flag, name.takes) {
            ("", _) => String::new(),
            (flag, Takes::Nothing) if flag.starts_with("disable-") => format!("`--{flag}`"),
            (flag, Takes::Nothing) => format!("`--{flag}`, `--no-{flag}`"),
            (flag, _) => format!("`--{flag}`"),
        };
        let variable = match name.variable {
            "" => String::new(),
            variable => format!("`{variable}`"),
        };
        out += &format!("| {flag} | {variable} | {} | {} |\n", here(name), name.says);
    }
    out
}

/// Returns the guide for those who come from Dynamo.
fn from_dynamo() -> String {
    let mut families = String::from("| variables there | |\n|---|---|\n");
    for (kin, says) in variables::FAMILIES {
        families += &format!("| `{kin}…` | {says} |\n");
    }
    let (flags, router) = (table(dynamo::NAMES.iter()), table(dynamo::ROUTER.iter()));
    let variables = table(variables::NAMES.iter());
    format!(
        "{DYNAMO}{flags}{DYNAMO_ROUTER}{router}{DYNAMO_VARIABLES}{variables}{DYNAMO_FAMILIES}{families}"
    )
}

/// Returns the guide for those who come from Triton.
fn from_triton() -> String {
    let rest = table(triton::NAMES.iter().chain(triton::REST));
    format!("{TRITON}{rest}")
}

const DYNAMO: &str = "\
# From Dynamo

A frontend of Dynamo's is `stator frontend`, and its workers are `stator worker`; on one machine `stator up MODEL` is both, and
`stator serve MODEL` needs neither. The flags and variables of Dynamo's frontend and runtime are read under their own names:

    python -m dynamo.frontend --http-port 8000 --kserve-grpc-server --discovery-backend etcd
    stator frontend           --http-port 8000 --kserve-grpc-server --discovery-backend etcd

In the tables, a flag of ours is what the name stands for. *always so* is accepted, and the log says why there is nothing to set. *only*
is accepted with these values, which hold here anyway; another one stops the start. *refused* stops the start. The sentence in the
last column is the one that is told.

A `DYN_*` variable is never passed over in silence. One that no table has is told of in a warning; if its name has a word such as TLS,
KEY or AUTH in it, so that it may be what keeps others out, it stops the start. A variable of a setting that the role has not, such as
DYN_HTTP_PORT for a worker, is told of in the log. An empty variable is none. A flag beats a `STATOR_*` variable, which beats a `DYN_*`
one, which beats the file of `--config`. `stator up` gives its processes flags and none of these variables.

What differs although the name is the same:

- The metrics are called `stator_…`; `--metrics-prefix` gives them another beginning, and what follows it stays ours:
  [observability.md](../observability.md). They are on port 8002, not on the port of HTTP alone.
- A frontend waits for a worker for `--worker-wait-ms` when a model has none, and `/health` tells whether models are there.
- A text that has begun is continued elsewhere by default; `--migration-limit 0` is Dynamo's default.
- Overload is 503; `--openai-overload-status 529` is Dynamo's.

## Flags of the frontend and of the runtime

";

const DYNAMO_ROUTER: &str = "
## Flags of the router

";

const DYNAMO_VARIABLES: &str = "
## Variables without a flag

Those that move a route may end in `_ENV` too, as Dynamo's documents have them.

";

const DYNAMO_FAMILIES: &str = "
## Families of variables

These are refused by what their names begin with.

";

const TRITON: &str = "\
# From Triton

`tritonserver --model-repository DIR` is `stator serve --model-repository DIR`, with the same ports (8000, 8001, 8002), the same
protocol ([protocol.md](../protocol.md)) and the same layout of folders ([models.md](../models.md)). Without a model of one's own
`stator serve` serves a small text model; `--no-default-model` leaves it out.

Triton's flags are read under their own names, and its switches with the values that Triton knows (`true`, `false`, `on`, `off`, `1`,
`0`). In the table, a flag of ours is what the name stands for. *always so* is accepted, and the log says why there is nothing to set.
*only* is accepted with these values, which hold here anyway; another one stops the start. *refused* stops the start. The sentence in
the last column is the one that is told.

";

/// Compares a guide with its file.
fn check(file: &str, guide: &str) {
    let path = format!("{}/../docs/guides/{file}", env!("CARGO_MANIFEST_DIR"));
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(written == guide, "docs/guides/{file} should read:\n\n{guide}");
}

#[test]
fn the_guide_from_dynamo_is_what_its_tables_say() {
    check("from-dynamo.md", &from_dynamo());
}

#[test]
fn the_guide_from_triton_is_what_its_tables_say() {
    check("from-triton.md", &from_triton());
}
