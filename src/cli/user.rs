//! `quorate user`: who may log in to the Kafka listener with a password.

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::connect::{self, failed};
use super::{Exit, ExitWith, GlobalOptions, Table, block_on, note, print_json};
use crate::client::{Admin, User};
use crate::metadata::{
    DEFAULT_SCRAM_ITERATIONS, MAX_SCRAM_ITERATIONS, MIN_SCRAM_ITERATIONS, ScramMechanism,
};

/// What verifiers are made with where nothing else is said: twice Kafka's least.
const DEFAULT_ITERATIONS: u32 = DEFAULT_SCRAM_ITERATIONS;
/// A longer password is a mistake, such as the wrong file.
const MAX_PASSWORD_BYTES: usize = 1024;

/// Users who log in to the Kafka listener with a password (servers started with --kafka-sasl)
#[derive(Args, Debug)]
pub(super) struct UserArgs {
    #[command(subcommand)]
    command: UserCommand,
}

#[derive(Subcommand, Debug)]
enum UserCommand {
    /// Make a user, or give one another password. Connections that are open stay open
    Set {
        #[arg(value_name = "NAME")]
        name: String,
        /// A file whose first line is the password; without it, standard input's is
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// For which of SCRAM's mechanisms; may be repeated [default: both]
        #[arg(long = "mechanism", value_name = "HASH")]
        mechanisms: Vec<Hash>,
        /// How often the password is hashed
        #[arg(long, value_name = "N", default_value_t = DEFAULT_ITERATIONS,
            value_parser = clap::value_parser!(u32).range(i64::from(MIN_SCRAM_ITERATIONS)..=i64::from(MAX_SCRAM_ITERATIONS)))]
        iterations: u32,
    },
    /// Show all users
    List,
    /// Take users' passwords away. Connections that are open stay open
    Delete {
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
    },
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
enum Hash {
    #[value(name = "sha-256")]
    Sha256,
    #[value(name = "sha-512")]
    Sha512,
}

impl From<Hash> for ScramMechanism {
    fn from(hash: Hash) -> ScramMechanism {
        match hash {
            Hash::Sha256 => ScramMechanism::Sha256,
            Hash::Sha512 => ScramMechanism::Sha512,
        }
    }
}

#[derive(Serialize)]
struct UserLine {
    user: String,
    mechanisms: Vec<&'static str>,
}

pub(super) fn run(options: &GlobalOptions, args: UserArgs) -> anyhow::Result<Exit> {
    // Before anybody is dialled, and without a runtime whose threads would wait for it.
    let password = match &args.command {
        UserCommand::Set { password_file, .. } => Some(read_password(password_file.as_ref())?),
        _ => None,
    };
    block_on(async {
        let client = connect::client(options).await?;
        let done = command(options, &client.admin(), args.command, password).await;
        client.close();
        done
    })
}

async fn command(
    options: &GlobalOptions,
    admin: &Admin,
    command: UserCommand,
    password: Option<String>,
) -> anyhow::Result<Exit> {
    match command {
        UserCommand::Set {
            name,
            mechanisms,
            iterations,
            ..
        } => {
            let mut chosen: Vec<ScramMechanism> = mechanisms.into_iter().map(Into::into).collect();
            chosen.sort_unstable();
            chosen.dedup();
            if chosen.is_empty() {
                chosen = ScramMechanism::ALL.to_vec();
            }
            let password = password.unwrap_or_default();
            admin
                .set_password(&name, &password, &chosen, iterations)
                .await
                .map_err(failed)?;
            note(&format!("User {name} has a password"));
        }
        UserCommand::List => list(options, admin.users().await.map_err(failed)?)?,
        UserCommand::Delete { names } => {
            let users = admin.users().await.map_err(failed)?;
            for name in names {
                let Some(user) = users.iter().find(|user| user.name == name) else {
                    let message = format!("there is no user {name}: see `quorate user list`");
                    return Err(ExitWith::new(Exit::Failure, message).into());
                };
                let mechanisms: Vec<_> = user.verifiers.iter().map(|(one, _)| *one).collect();
                admin
                    .delete_user(&name, &mechanisms)
                    .await
                    .map_err(failed)?;
                note(&format!("Deleted user {name}"));
            }
        }
    }
    Ok(Exit::Ok)
}

fn list(options: &GlobalOptions, users: Vec<User>) -> anyhow::Result<()> {
    let mut table = Table::new(["USER", "MECHANISMS"]);
    for user in users {
        let mechanisms: Vec<_> = user.verifiers.iter().map(|(one, _)| one.name()).collect();
        if options.json() {
            print_json(&UserLine {
                user: user.name,
                mechanisms,
            })?;
        } else {
            table.row([user.name, mechanisms.join(", ")]);
        }
    }
    if !options.json() {
        table.print()?;
    }
    Ok(())
}

/// The first line of the file, or of standard input. A terminal does not show what is typed.
fn read_password(file: Option<&PathBuf>) -> anyhow::Result<String> {
    let mut line = String::new();
    match file {
        Some(path) => {
            let unreadable = |error: std::io::Error| {
                let message = format!("cannot read the password in {}: {error}", path.display());
                ExitWith::new(Exit::Failure, message)
            };
            let text = std::fs::read_to_string(path).map_err(unreadable)?;
            line.push_str(text.lines().next().unwrap_or_default());
        }
        None => {
            let input = std::io::stdin();
            let _quiet = input.is_terminal().then(|| {
                note("Password:");
                Quiet::begin()
            });
            input.lock().read_line(&mut line).map_err(|error| {
                let message = format!("cannot read the password from standard input: {error}");
                ExitWith::new(Exit::Failure, message)
            })?;
        }
    }
    let password = line.trim_end_matches(['\r', '\n']);
    if password.is_empty() || password.len() > MAX_PASSWORD_BYTES {
        let message = format!(
            "a password has 1 to {MAX_PASSWORD_BYTES} bytes, and this one {}: give it in a file's first line with \
             --password-file, or on standard input",
            password.len()
        );
        return Err(ExitWith::new(Exit::Usage, message).into());
    }
    Ok(password.to_owned())
}

/// A terminal that does not show what is typed, until it is dropped.
struct Quiet(Option<rustix::termios::Termios>);

impl Quiet {
    fn begin() -> Quiet {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
        let Ok(before) = tcgetattr(std::io::stdin()) else {
            return Quiet(None);
        };
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        // Where it cannot be done, the password is typed in the open, and works.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, &quiet);
        Quiet(Some(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        use rustix::termios::{OptionalActions, tcsetattr};
        if let Some(before) = &self.0 {
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}
