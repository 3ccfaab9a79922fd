//! DescribeUserScramCredentials and AlterUserScramCredentials: who may log in with a password.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kafka_protocol::messages::alter_user_scram_credentials_response::AlterUserScramCredentialsResult;
use kafka_protocol::messages::describe_user_scram_credentials_response::{
    CredentialInfo, DescribeUserScramCredentialsResult,
};
use kafka_protocol::messages::{
    AlterUserScramCredentialsRequest, AlterUserScramCredentialsResponse,
    DescribeUserScramCredentialsRequest, DescribeUserScramCredentialsResponse,
};
use tokio::time::Instant;

use super::code_and_message;
use crate::kafka::codec::text;
use crate::kafka::context::Context;
use crate::kafka::{Refusal, Service};
use crate::metadata::{ScramMechanism, ScramVerifier};
use crate::types::ErrorCode;

/// The request has no timeout of its own.
const COMMITTED_WITHIN: Duration = Duration::from_secs(30);

/// One user's change: a new verifier, or none from here on.
type Change = (ScramMechanism, Option<ScramVerifier>);

pub(super) async fn describe<S: Service>(
    context: Arc<Context<S>>,
    request: DescribeUserScramCredentialsRequest,
    _version: i16,
) -> DescribeUserScramCredentialsResponse {
    let image = context.service.image();
    let known: BTreeMap<&str, Vec<CredentialInfo>> = image
        .users()
        .map(|(user, made_with)| {
            let infos = made_with.map(|(mechanism, iterations)| {
                CredentialInfo::default()
                    .with_mechanism(mechanism.code())
                    .with_iterations(i32::try_from(iterations).unwrap_or(i32::MAX))
            });
            (user, infos.collect())
        })
        .collect();
    let asked = request.users.filter(|users| !users.is_empty());
    let results = match &asked {
        None => known
            .into_iter()
            .map(|(user, infos)| described(user, Some(infos)))
            .collect(),
        Some(users) => {
            let mut names: Vec<&str> = users.iter().map(|user| user.name.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            names
                .into_iter()
                .map(|name| described(name, known.get(name).cloned()))
                .collect()
        }
    };
    DescribeUserScramCredentialsResponse::default().with_results(results)
}

fn described(user: &str, infos: Option<Vec<CredentialInfo>>) -> DescribeUserScramCredentialsResult {
    let result = DescribeUserScramCredentialsResult::default().with_user(text(user));
    match infos {
        Some(infos) => result.with_credential_infos(infos),
        None => result
            .with_error_code(ErrorCode::ResourceNotFound.code())
            .with_error_message(Some(text(format!("there is no user {user:.255}")))),
    }
}

pub(super) async fn alter<S: Service>(
    context: Arc<Context<S>>,
    request: AlterUserScramCredentialsRequest,
    _version: i16,
) -> AlterUserScramCredentialsResponse {
    let deadline = Instant::now() + COMMITTED_WITHIN;
    let allowed = context.login().may_change_users();
    let mut changes: BTreeMap<String, Vec<Result<Change, Refusal>>> = BTreeMap::new();
    for deletion in request.deletions {
        let change = mechanism(deletion.mechanism).map(|mechanism| (mechanism, None));
        let changes = changes.entry(deletion.name.to_string()).or_default();
        changes.push(change);
    }
    for new in request.upsertions {
        let change = mechanism(new.mechanism).and_then(|mechanism| {
            if !allowed {
                // Refused below, and not worth the hashes.
                return Ok((mechanism, None));
            }
            if new.salted_password.len() != mechanism.hash_bytes() {
                return Err(unacceptable(
                    "the salted password has another length than the hash",
                ));
            }
            let iterations = u32::try_from(new.iterations)
                .map_err(|_| unacceptable("the number of iterations is negative"))?;
            let salted = &new.salted_password;
            let verifier = ScramVerifier::derived(mechanism, salted, &new.salt, iterations);
            Ok((mechanism, Some(verifier)))
        });
        let changes = changes.entry(new.name.to_string()).or_default();
        changes.push(change);
    }
    let mut results = Vec::with_capacity(changes.len());
    for (user, changes) in changes {
        let outcome = match allowed {
            true => apply(&context, &user, changes, deadline).await,
            false => Err(Refusal {
                error: ErrorCode::ClusterAuthorizationFailed,
                message: Some(
                    "only clients with a certificate may change users: see `quorate user`"
                        .to_owned(),
                ),
            }),
        };
        let (code, message) = code_and_message(&outcome);
        results.push(
            AlterUserScramCredentialsResult::default()
                .with_user(text(user))
                .with_error_code(code)
                .with_error_message(message),
        );
    }
    AlterUserScramCredentialsResponse::default().with_results(results)
}

async fn apply<S: Service>(
    context: &Context<S>,
    user: &str,
    changes: Vec<Result<Change, Refusal>>,
    deadline: Instant,
) -> Result<(), Refusal> {
    let changes = changes.into_iter().collect::<Result<Vec<_>, _>>()?;
    let twice = changes
        .iter()
        .enumerate()
        .any(|(place, (one, _))| changes[..place].iter().any(|(other, _)| one == other));
    if twice {
        return Err(Refusal {
            error: ErrorCode::DuplicateResource,
            message: Some("the request changes the same password of the user twice".to_owned()),
        });
    }
    for (mechanism, verifier) in changes {
        context
            .service
            .change_credential(user.to_owned(), mechanism, verifier, deadline)
            .await?;
    }
    Ok(())
}

fn mechanism(code: i8) -> Result<ScramMechanism, Refusal> {
    ScramMechanism::from_code(code).ok_or_else(|| Refusal {
        error: ErrorCode::UnsupportedSaslMechanism,
        message: Some(format!(
            "{code} is the number of no SCRAM mechanism: 1 is SHA-256, 2 SHA-512"
        )),
    })
}

fn unacceptable(reason: &str) -> Refusal {
    Refusal {
        error: ErrorCode::UnacceptableCredential,
        message: Some(reason.to_owned()),
    }
}
