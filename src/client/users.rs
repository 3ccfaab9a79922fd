//! Users who log in with a password.

use kafka_protocol::messages::alter_user_scram_credentials_request::{
    ScramCredentialDeletion, ScramCredentialUpsertion,
};
use kafka_protocol::messages::{
    AlterUserScramCredentialsRequest, DescribeUserScramCredentialsRequest,
};

use super::admin::Admin;
use super::error::ClientError;
use super::wire_str;
use crate::metadata::ScramMechanism;

/// Length of the salts that are drawn here.
const SALT_BYTES: usize = 16;

/// A user, and what the password's verifiers are made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub verifiers: Vec<(ScramMechanism, u32)>,
}

impl Admin {
    /// Every user with a password, by name.
    pub async fn users(&self) -> Result<Vec<User>, ClientError> {
        let request = DescribeUserScramCredentialsRequest::default().with_users(None);
        let timeout = self.client().config().request_timeout;
        let response = self.client().call_any(&request, timeout, false).await?;
        let what = || "listing users".to_owned();
        ClientError::check(response.error_code, response.error_message.as_deref(), what)?;
        let mut users: Vec<User> = response
            .results
            .iter()
            .map(|user| User {
                name: user.user.to_string(),
                verifiers: user
                    .credential_infos
                    .iter()
                    .filter_map(|info| {
                        let mechanism = ScramMechanism::from_code(info.mechanism)?;
                        Some((mechanism, u32::try_from(info.iterations).ok()?))
                    })
                    .collect(),
            })
            .collect();
        users.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(users)
    }

    /// Gives a user this password, for each of the mechanisms. The password does not leave this process: what is sent has been
    /// salted and hashed `iterations` times.
    pub async fn set_password(
        &self,
        user: &str,
        password: &str,
        mechanisms: &[ScramMechanism],
        iterations: u32,
    ) -> Result<(), ClientError> {
        let upsertions = mechanisms.iter().map(|mechanism| {
            let salt: [u8; SALT_BYTES] = rand::random();
            let salted = mechanism.salted_password(password.as_bytes(), &salt, iterations);
            ScramCredentialUpsertion::default()
                .with_name(wire_str(user))
                .with_mechanism(mechanism.code())
                .with_iterations(i32::try_from(iterations).unwrap_or(i32::MAX))
                .with_salt(salt.to_vec().into())
                .with_salted_password(salted.into())
        });
        let request =
            AlterUserScramCredentialsRequest::default().with_upsertions(upsertions.collect());
        self.alter_users(&request, &format!("setting the password of user {user}"))
            .await
    }

    /// Takes a user's passwords away.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with `ResourceNotFound` where there is none.
    pub async fn delete_user(
        &self,
        user: &str,
        mechanisms: &[ScramMechanism],
    ) -> Result<(), ClientError> {
        let deletions = mechanisms.iter().map(|mechanism| {
            ScramCredentialDeletion::default()
                .with_name(wire_str(user))
                .with_mechanism(mechanism.code())
        });
        let request =
            AlterUserScramCredentialsRequest::default().with_deletions(deletions.collect());
        self.alter_users(&request, &format!("deleting user {user}"))
            .await
    }

    /// Any node carries it to the active controller.
    async fn alter_users(
        &self,
        request: &AlterUserScramCredentialsRequest,
        what: &str,
    ) -> Result<(), ClientError> {
        let timeout = self.client().config().request_timeout;
        let response = self.client().call_any(request, timeout, false).await?;
        for result in &response.results {
            let message = result.error_message.as_deref();
            ClientError::check(result.error_code, message, || what.to_owned())?;
        }
        Ok(())
    }
}
