//! `stator chat`: a conversation in the terminal with a running server, over its OpenAI door.
//!
//! Standard output holds the answers and nothing else; what is said about them goes to standard error.

mod connection;
mod frames;
mod session;
mod terminal;

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use tokio::runtime::Runtime;

use crate::args::ChatArgs;
use connection::Server;
use session::{Command, End, HELP, Session};
use terminal::Screen;

/// The exit code of flags that cannot be used, as clap's.
const USAGE: u8 = 2;

/// The exit code after Ctrl-C, as a shell's.
const INTERRUPTED: u8 = 130;

/// The longest line of a prompt that is piped in.
const MAX_LINE_BYTES: u64 = 4 << 20;

/// Why a chat, or one answer of it, could not be.
#[derive(Debug, thiserror::Error)]
enum ChatError {
    /// The address is none.
    #[error("address `{url}`: {why}")]
    Address { url: String, why: String },
    /// The key cannot be sent.
    #[error("the API key cannot be used: {0}")]
    Key(String),
    /// A file of a flag cannot be used.
    #[error("cannot read the {what} of `{path}`: {why}", path = path.display())]
    File { path: PathBuf, what: &'static str, why: String },
    /// Nobody is there.
    #[error("cannot reach {address}: {why}")]
    Unreachable { address: String, why: String },
    /// The server said no.
    #[error("the server refused with HTTP {status}: {text}")]
    Refused { status: u16, text: String },
    /// The server failed in the middle of an answer.
    #[error("the answer failed: {0}")]
    Failed(String),
    /// The connection did not last.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// What came is not what the protocol has.
    #[error("the server sent {0}")]
    Strange(String),
    /// There is nothing to chat with.
    #[error("the server lists no model; choose one with --model")]
    NoModel,
    /// Standard input or output is gone.
    #[error("terminal: {0}")]
    Terminal(#[from] io::Error),
}

/// Chats until the input ends. Returns the exit code.
pub fn run(args: &ChatArgs) -> ExitCode {
    let server = match server(args) {
        Ok(server) => server,
        Err(error) => {
            complain(&error);
            return ExitCode::from(USAGE);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(ChatError::from).and_then(|runtime| {
        let session = runtime.block_on(session(args, server))?;
        match io::stdin().is_terminal() {
            true => converse(&runtime, session, &args.url),
            false => answer_lines(&runtime, session),
        }
    });
    match result {
        Ok(code) => code,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn complain(error: &ChatError) {
    let _ = writeln!(io::stderr(), "stator: {error}");
}

fn server(args: &ChatArgs) -> Result<Server, ChatError> {
    let key = args.api_key_file.as_deref().map(key_of).transpose()?;
    Server::new(&args.url, key.as_deref(), args.ca_file.as_deref())
}

/// Returns the key in a file: its first line.
fn key_of(path: &Path) -> Result<String, ChatError> {
    let wrong = |why: String| ChatError::File { path: path.to_owned(), what: "API key", why };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
    match text.lines().next().map(str::trim) {
        Some(key) if !key.is_empty() => Ok(key.to_owned()),
        _ => Err(wrong("its first line is empty".to_owned())),
    }
}

async fn session(args: &ChatArgs, server: Server) -> Result<Session, ChatError> {
    let model = match &args.model {
        Some(model) => model.clone(),
        None => server.models().await?.into_iter().next().ok_or(ChatError::NoModel)?,
    };
    Ok(Session::new(args, server, model))
}

/// Chats with a person at a terminal.
fn converse(runtime: &Runtime, mut session: Session, url: &str) -> Result<ExitCode, ChatError> {
    let failed = |error: ReadlineError| ChatError::Terminal(io::Error::other(error));
    let mut editor = DefaultEditor::new().map_err(failed)?;
    let mut screen = Screen::new(io::stdout().is_terminal());
    screen.remark(&format!("{} at {url}; /help tells more, Ctrl-D ends", session.model()))?;
    let mut is_interrupted = false;
    loop {
        let line = match editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Eof) => return Ok(ExitCode::SUCCESS),
            Err(ReadlineError::Interrupted) if is_interrupted => {
                return Ok(ExitCode::from(INTERRUPTED));
            }
            Err(ReadlineError::Interrupted) => {
                is_interrupted = true;
                screen.remark("Ctrl-C again ends the chat")?;
                continue;
            }
            Err(error) => return Err(failed(error)),
        };
        is_interrupted = false;
        if line.trim().is_empty() {
            continue;
        }
        let _ = editor.add_history_entry(&line);
        match Command::of(&line) {
            Some(Ok(Command::Exit)) => return Ok(ExitCode::SUCCESS),
            Some(Ok(Command::Help)) => screen.remark(HELP)?,
            Some(Ok(command)) => screen.remark(&session.obey(command))?,
            Some(Err(name)) => {
                let hint = "/help lists the commands; a space in front makes it a message";
                screen.remark(&format!("no command is called `{name}`; {hint}"))?;
            }
            None => match runtime.block_on(session.ask(&line, &mut screen, true)) {
                Ok(End::Complete) => {}
                Ok(End::Interrupted) => {
                    is_interrupted = true;
                    screen.remark("stopped; Ctrl-C again ends the chat")?;
                }
                Err(error @ ChatError::Terminal(_)) => return Err(error),
                Err(error) => complain(&error),
            },
        }
    }
}

/// Answers each line of standard input; the first error ends it.
fn answer_lines(runtime: &Runtime, mut session: Session) -> Result<ExitCode, ChatError> {
    let mut screen = Screen::new(io::stdout().is_terminal());
    let mut input = io::stdin().lock();
    loop {
        let mut line = String::new();
        let mut limited = io::Read::take(&mut input, MAX_LINE_BYTES);
        if limited.read_line(&mut line)? == 0 {
            return Ok(ExitCode::SUCCESS);
        }
        if line.len() as u64 == MAX_LINE_BYTES && !line.ends_with('\n') {
            let text = format!("a line of over {MAX_LINE_BYTES} bytes");
            return Err(ChatError::Terminal(io::Error::other(text)));
        }
        let line = line.trim_end_matches(['\n', '\r']);
        match Command::of(line) {
            _ if line.trim().is_empty() => {}
            Some(Ok(Command::Exit)) => return Ok(ExitCode::SUCCESS),
            Some(Ok(Command::Help)) => screen.remark(HELP)?,
            Some(Ok(command)) => drop(session.obey(command)),
            // A line that merely looks like a command is a prompt.
            Some(Err(_)) | None => {
                runtime.block_on(session.ask(line, &mut screen, false))?;
            }
        }
    }
}
