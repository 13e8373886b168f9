//! Tokens of Entra ID: a managed identity's, or an application's whose credentials the environment holds.
//!
//! The only place that speaks HTTP. Each reading asks anew, as a cache would hand out a token that a server has refused.
//! Invariant: no error repeats what an endpoint has sent, as that may hold a token.

use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Identity, Reading, Redacted};
use azure_core::credentials::{AccessToken, Secret, TokenCredential};
use azure_core::error::ErrorKind as Azure;
use azure_core::http::{ClientOptions, ExponentialRetryOptions, RetryOptions, Transport};
use azure_core::time::{Duration as AzureDuration, OffsetDateTime};
use azure_identity::{
    ClientAssertionCredentialOptions, ClientSecretCredential, ClientSecretCredentialOptions,
    ManagedIdentityCredential, ManagedIdentityCredentialOptions, UserAssignedId,
    WorkloadIdentityCredential, WorkloadIdentityCredentialOptions,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::sync::Arc;
use std::time::Duration;

/// What tokens are asked for: Azure Cache for Redis and Azure Managed Redis take the same.
const SCOPE: &str = "https://redis.azure.com/.default";
/// How long one token may take to come.
const LIMIT: Duration = Duration::from_secs(60);
const ONE_REQUEST: Duration = Duration::from_secs(10);
/// So long before its end a token is renewed, where it lasts twice as long or longer.
const EARLY: Duration = Duration::from_secs(300);

pub async fn token(identity: &Identity) -> Result<Reading> {
    let credential = credential(identity)?;
    let scopes = [SCOPE];
    let asked = tokio::time::timeout(LIMIT, credential.get_token(&scopes, None)).await;
    let token = asked
        .map_err(|_| failed(identity, format!("no answer within {} s", LIMIT.as_secs())))?
        .map_err(|e| failed(identity, why(&e)))?;
    reading(&token, OffsetDateTime::now_utc())
}

fn failed(identity: &Identity, why: String) -> Error {
    let hint = match identity {
        Identity::System => "has this machine a managed identity of its own (system-assigned)?",
        Identity::Client(_) => {
            "is the identity with this client_id assigned to this machine (user-assigned)?"
        }
        Identity::Environment => {
            "look at AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET or AZURE_FEDERATED_TOKEN_FILE"
        }
    };
    Error::new(
        ErrorKind::Auth,
        format!("get a token of Entra ID for {identity}: {why}"),
    )
    .hint(hint)
}

fn credential(identity: &Identity) -> Result<Arc<dyn TokenCredential>> {
    let wrong = |e: azure_core::Error| failed(identity, e.to_string());
    let managed = |user_assigned_id| -> Result<Arc<dyn TokenCredential>> {
        // Its endpoint is on this machine: neither a proxy nor another host is to see its secret.
        let client_options = client(reqwest::Client::builder().no_proxy())?;
        let options = ManagedIdentityCredentialOptions {
            user_assigned_id,
            client_options,
        };
        Ok(ManagedIdentityCredential::new(Some(options)).map_err(wrong)?)
    };
    match identity {
        Identity::System => managed(None),
        Identity::Client(id) => managed(Some(UserAssignedId::ClientId(id.clone()))),
        Identity::Environment => {
            let client_options = client(reqwest::Client::builder())?;
            if std::env::var_os("AZURE_FEDERATED_TOKEN_FILE").is_some() {
                let options = WorkloadIdentityCredentialOptions {
                    credential_options: ClientAssertionCredentialOptions { client_options },
                    ..Default::default()
                };
                return Ok(WorkloadIdentityCredential::new(Some(options)).map_err(wrong)?);
            }
            let variable = |name: &str| {
                std::env::var(name)
                    .map_err(|_| failed(identity, format!("the variable {name} is not set")))
            };
            let options = ClientSecretCredentialOptions { client_options };
            let made = ClientSecretCredential::new(
                &variable("AZURE_TENANT_ID")?,
                variable("AZURE_CLIENT_ID")?,
                Secret::new(variable("AZURE_CLIENT_SECRET")?),
                Some(options),
            );
            Ok(made.map_err(wrong)?)
        }
    }
}

fn client(builder: reqwest::ClientBuilder) -> Result<ClientOptions> {
    let client = builder
        .redirect(reqwest::redirect::Policy::none())
        .timeout(ONE_REQUEST)
        .build()
        .map_err(|e| Error::new(ErrorKind::Tls, "prepare HTTPS for Entra ID").cause(e))?;
    Ok(ClientOptions {
        transport: Some(Transport::new(Arc::new(client))),
        retry: RetryOptions::exponential(ExponentialRetryOptions {
            max_total_elapsed: AzureDuration::seconds(10),
            ..Default::default()
        }),
        ..Default::default()
    })
}

/// Why there is no token, without a word of what has been sent but the numbers of errors.
fn why(e: &azure_core::Error) -> String {
    let mut below: Option<&(dyn std::error::Error + 'static)> = Some(e);
    let mut told = String::new();
    while let Some(e) = below {
        if let Some(e) = e.downcast_ref::<azure_core::Error>() {
            match e.kind() {
                Azure::HttpResponse {
                    status, error_code, ..
                } => {
                    let code = error_code
                        .as_deref()
                        .filter(|c| (c.bytes()).all(|b| b.is_ascii_digit() || b == b','));
                    let code = code.map_or(String::new(), |c| format!(", AADSTS{c}"));
                    return format!(
                        "the endpoint answered with status {}{code}",
                        u16::from(*status)
                    );
                }
                Azure::Io => told = "the endpoint cannot be reached".into(),
                Azure::DataConversion => {
                    told = "the endpoint answered with something else than a token".into();
                }
                _ => {}
            }
        }
        below = e.source();
    }
    match told.is_empty() {
        true => "it was refused".into(),
        false => told,
    }
}

/// A token as a password: whose it is, and when another is to be got.
fn reading(token: &AccessToken, now: OffsetDateTime) -> Result<Reading> {
    let text = token.token.secret();
    let (ends, now) = (token.expires_on.unix_timestamp(), now.unix_timestamp());
    let left = Duration::from_secs(u64::try_from(ends.saturating_sub(now)).unwrap_or(0));
    let good_for = match left > 2 * EARLY {
        true => (left * 3 / 4).min(left - EARLY),
        false => left * 3 / 4,
    };
    Ok(Reading {
        password: Redacted::new(text.to_owned()),
        user: object_id(text),
        good_for,
    })
}

/// The claim `oid` of a token, which is the user's name for Redis.
fn object_id(token: &str) -> Option<String> {
    let payload = token.split('.').nth(1)?;
    let payload = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&payload).ok()?;
    let id = claims.get("oid")?.as_str()?;
    let is_id = |b: u8| b.is_ascii_hexdigit() || b == b'-';
    (!id.is_empty() && id.len() <= 64 && id.bytes().all(is_id)).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(claims: &str) -> String {
        format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(claims))
    }

    #[test]
    fn the_user_is_the_object_id_of_the_token() {
        let id = "4f1b8c2a-0000-4000-8000-0123456789ab";
        let claims = format!(r#"{{"aud":"https://redis.azure.com","oid":"{id}"}}"#);
        assert_eq!(object_id(&token(&claims)).as_deref(), Some(id));
        for none in [
            "",
            "a.b.c",
            &token("{}"),
            &token(r#"{"oid":7}"#),
            &token(r#"{"oid":"x\ny"}"#),
        ] {
            assert_eq!(object_id(none), None, "{none}");
        }
    }

    #[test]
    fn a_token_is_renewed_well_before_it_ends() {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).expect("a time");
        for (lasts, renewed) in [
            (3600, 2700),
            (86_400, 64_800),
            (900, 600),
            (60, 45),
            (-5, 0),
        ] {
            let token = AccessToken::new("a.b.c", now + AzureDuration::seconds(lasts));
            let reading = reading(&token, now).expect("it is read");
            assert_eq!(reading.good_for, Duration::from_secs(renewed), "{lasts}");
        }
    }
}
