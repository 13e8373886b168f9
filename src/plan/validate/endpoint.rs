//! One side of a plan: its url, credentials, TLS and addresses.

use super::refusal::{check_db_zero, wrong};
use crate::error::Result;
use crate::plan::document::{
    EntraPlan, IdentityPlan, KnownIdentity, PasswordPlan, SentinelTls, TargetPlan, TlsPlan,
    TlsVerify, Topology,
};
use crate::plan::job::{Endpoint, Limits, TlsOptions};
use crate::plan::learnt::Learnt;
use crate::plan::names::CommandNames;
use crate::plan::secret::{Identity, Redacted, Secret};
use crate::plan::url::{self, Location};
use std::collections::BTreeMap;
use std::time::Duration;

/// Url, credentials, TLS and addresses of one side.
pub(super) fn endpoint(
    side: &str,
    typed: &TargetPlan,
    warnings: &mut Vec<String>,
) -> Result<Endpoint> {
    let at = url::parse(&format!("{side}.url"), &typed.url)?;
    if at.username.is_some() && typed.username.is_some() {
        return Err(
            wrong(format!("{side}.username is also in {side}.url")).hint("keep one of them")
        );
    }
    if at.password.is_some() && typed.password.is_some() {
        return Err(wrong(format!("{side}.password is also in {side}.url"))
            .hint("keep the one outside the url"));
    }
    let username = match typed.username.as_deref() {
        Some("") => {
            return Err(wrong(format!("{side}.username is empty"))
                .hint("leave it out for the default user"));
        }
        Some(name) => Some(name.to_string()),
        None => at.username,
    };
    let password = match (&typed.password, at.password) {
        (Some(p), _) => Some(secret(&format!("{side}.password"), p, warnings)?),
        (None, Some(p)) => {
            warnings.push(in_plain(&format!("{side}.url")));
            Some(Secret::Plain(p))
        }
        (None, None) => None,
    };
    if username.is_some() && password.is_none() {
        warnings.push(format!(
            "{side} has a username and no password; that works only for a user with nopass"
        ));
    }
    if matches!(password, Some(Secret::Entra(_))) && !at.tls {
        warnings.push(format!(
            "{side}.password is a token of Entra ID, and {side}.url is not TLS: whoever listens can log in with it until it ends; Azure takes tokens over rediss:// only"
        ));
    }
    let tls_options = match &typed.tls {
        Some(typed) if at.tls => Some(tls(side, typed, warnings)?),
        Some(typed) => {
            refuse_tls(side, typed)?;
            None
        }
        None => at.tls.then(TlsOptions::default),
    };
    let sentinels = sentinels(side, typed, &at.location, tls_options.as_ref(), warnings)?;
    for (announced, reachable) in &typed.address_map {
        let path = format!("{side}.address_map[{announced:?}]");
        for address in [announced, reachable] {
            let (_, port) = url::host_and_port(address).map_err(|what| {
                wrong(format!("{path} {what}")).hint("write \"host:port\": \"host:port\"")
            })?;
            if port.is_none() {
                return Err(
                    wrong(format!("{path} has no port")).hint("write \"host:port\": \"host:port\"")
                );
            }
        }
    }
    if typed.topology == Topology::Cluster || typed.topology == Topology::Proxy {
        check_db_zero(side, &format!("{side}.url names"), typed.topology, at.db)?;
    }
    Ok(Endpoint {
        location: at.location,
        db: at.db,
        tls: tls_options,
        username,
        password,
        topology: typed.topology,
        address_map: typed.address_map.clone(),
        commands: names(side, &typed.commands)?,
        from_replicas: false,
        element_bytes: Limits::default().element(),
        sentinels,
        learnt: Learnt::default(),
    })
}

/// How the sentinels of a url are asked: with a login and TLS of their own, or with those of the server.
fn sentinels(
    side: &str,
    typed: &TargetPlan,
    location: &Location,
    servers_tls: Option<&TlsOptions>,
    warnings: &mut Vec<String>,
) -> Result<Option<Box<Endpoint>>> {
    let path = format!("{side}.sentinel");
    let Location::Sentinels { nodes, .. } = location else {
        return match typed.sentinel {
            Some(_) => Err(
                wrong(format!("{path} is given, but {side}.url is not Sentinel's")).hint(
                    "write redis+sentinel://host:26379/NAME in the url, or leave sentinel out",
                ),
            ),
            None => Ok(None),
        };
    };
    let own = typed.sentinel.clone().unwrap_or_default();
    let tls = match &own.tls {
        None => servers_tls.cloned(),
        Some(SentinelTls::Spoken(yes)) => yes.then(TlsOptions::default),
        Some(SentinelTls::By(options)) => Some(tls(&path, options, warnings)?),
    };
    let password = match &own.password {
        Some(typed) => Some(secret(&format!("{path}.password"), typed, warnings)?),
        None => None,
    };
    if let (Some(_), None) = (&own.username, &password) {
        return Err(wrong(format!("{path}.username needs {path}.password")));
    }
    Ok(Some(Box::new(Endpoint {
        location: Location::Addresses(nodes.clone()),
        db: None,
        tls,
        username: own.username,
        password,
        topology: Topology::Standalone,
        address_map: Default::default(),
        commands: Default::default(),
        from_replicas: false,
        element_bytes: Limits::default().element(),
        sentinels: None,
        learnt: Learnt::default(),
    })))
}

/// No two commands can have one name, and none has none: that one is switched off.
fn names(side: &str, typed: &BTreeMap<String, String>) -> Result<CommandNames> {
    let mut given: BTreeMap<String, &str> = BTreeMap::new();
    for (known, here) in typed {
        let path = format!("{side}.commands[{known:?}]");
        let is_word = |text: &str| text.bytes().all(|b| b.is_ascii_graphic()) && !text.is_empty();
        if !is_word(known) || !is_word(here) {
            return Err(wrong(format!("{path} is not a name")).hint(
                "write \"CONFIG\": \"its-other-name\", without spaces, and the first word only; a command that is switched off is not named",
            ));
        }
        if let Some(other) = given.insert(here.to_ascii_uppercase(), known) {
            return Err(wrong(format!(
                "{side}.commands calls both {other} and {known} by one name"
            )));
        }
    }
    Ok(CommandNames::new(typed))
}

fn in_plain(place: &str) -> String {
    format!(
        "{place} holds a password as plain text; {{\"env\": \"NAME\"}}, {{\"file\": \"PATH\"}} or {{\"command\": […]}} keeps it out of the plan"
    )
}

fn secret(path: &str, typed: &PasswordPlan, warnings: &mut Vec<String>) -> Result<Secret> {
    let from = match typed {
        PasswordPlan::Text(text) if text.is_empty() => {
            return Err(wrong(format!("{path} is empty")).hint("leave it out when there is none"));
        }
        PasswordPlan::Text(text) => {
            warnings.push(in_plain(path));
            return Ok(Secret::Plain(Redacted::new(text.clone())));
        }
        PasswordPlan::From(from) => from,
    };
    if let Some(typed) = &from.entra {
        let others = [
            from.env.is_some(),
            from.file.is_some(),
            from.command.is_some(),
        ];
        if others.contains(&true) || from.refresh_s.is_some() {
            return Err(wrong(format!("{path} has something beside entra"))
                .hint("a token of Entra ID tells itself when it ends: keep entra alone"));
        }
        return entra(path, typed).map(Secret::Entra);
    }
    let found = match (&from.env, &from.file, &from.command) {
        (Some(name), None, None) if name.is_empty() || name.contains(['=', '\0']) => {
            return Err(wrong(format!(
                "{path}.env is not the name of an environment variable"
            )));
        }
        (Some(name), None, None) => Secret::Env(name.clone()),
        (None, Some(file), None) if file.is_empty() => {
            return Err(wrong(format!("{path}.file is empty")));
        }
        (None, Some(file), None) => Secret::File(file.into()),
        (None, None, Some(argv)) if argv.first().is_none_or(String::is_empty) => {
            return Err(wrong(format!("{path}.command is empty"))
                .hint("write the program and its arguments as a list"));
        }
        (None, None, Some(argv)) => {
            let refresh = from.refresh_s.filter(|s| *s > 0).map(Duration::from_secs);
            Secret::Command {
                argv: argv.clone(),
                refresh,
                without: Vec::new(),
            }
        }
        _ => {
            return Err(wrong(format!(
                "{path} must have exactly one of env, file, command and entra"
            )));
        }
    };
    if from.refresh_s.is_some() && from.command.is_none() {
        return Err(wrong(format!(
            "{path}.refresh_s has a meaning only with command"
        )));
    }
    Ok(found)
}

fn entra(path: &str, typed: &EntraPlan) -> Result<Identity> {
    if !cfg!(feature = "entra") {
        return Err(wrong(format!(
            "{path} is a token of Entra ID, and this keyferry was built without the feature \"entra\""
        ))
        .hint("take one that has it, or get the token by a command: {\"command\": [\"az\", …], \"refresh_s\": 1800}"));
    }
    match &typed.identity {
        IdentityPlan::Known(KnownIdentity::System) => Ok(Identity::System),
        IdentityPlan::Known(KnownIdentity::Environment) => Ok(Identity::Environment),
        IdentityPlan::Assigned(assigned) if assigned.client_id.is_empty() => {
            Err(wrong(format!("{path}.entra.identity.client_id is empty"))
                .hint("\"system\" is the machine's own identity"))
        }
        IdentityPlan::Assigned(assigned) => Ok(Identity::Client(assigned.client_id.clone())),
    }
}

/// Options of TLS where the url is not: the first that is given is refused.
fn refuse_tls(side: &str, typed: &TlsPlan) -> Result<()> {
    let given = [
        ("ca", typed.ca.is_some()),
        ("cert", typed.cert.is_some()),
        ("key", typed.key.is_some()),
        ("server_name", typed.server_name.is_some()),
        ("verify", typed.verify.is_some()),
        ("insecure", typed.insecure),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((key, _)) => Err(wrong(format!(
            "{side}.tls.{key} is given, but {side}.url is not TLS"
        ))
        .hint("write rediss:// in the url, or leave tls out")),
        None => Ok(()),
    }
}

/// Options of a connection that is TLS.
fn tls(side: &str, typed: &TlsPlan, warnings: &mut Vec<String>) -> Result<TlsOptions> {
    for (key, value) in [
        ("ca", &typed.ca),
        ("cert", &typed.cert),
        ("key", &typed.key),
        ("server_name", &typed.server_name),
    ] {
        if value.as_deref() == Some("") {
            return Err(
                wrong(format!("{side}.tls.{key} is empty")).hint("write null or leave it out")
            );
        }
    }
    match (&typed.cert, &typed.key) {
        (Some(_), None) => return Err(wrong(format!("{side}.tls.cert needs {side}.tls.key"))),
        (None, Some(_)) => return Err(wrong(format!("{side}.tls.key needs {side}.tls.cert"))),
        _ => {}
    }
    let verify = match (typed.verify, typed.insecure) {
        (Some(TlsVerify::Full | TlsVerify::Ca), true) => {
            return Err(wrong(format!(
                "{side}.tls.insecure accepts any certificate, and {side}.tls.verify does not"
            ))
            .hint("take insecure out; verify \"none\" says the same"));
        }
        (None, true) => TlsVerify::None,
        (verify, _) => verify.unwrap_or_default(),
    };
    match verify {
        TlsVerify::None => {
            let key = if typed.insecure {
                "insecure"
            } else {
                "verify \"none\""
            };
            warnings.push(format!("{side}.tls.{key} accepts any certificate: whoever sits between can read and change everything"));
        }
        TlsVerify::Ca if typed.ca.is_none() => warnings.push(format!("{side}.tls.verify \"ca\" without {side}.tls.ca accepts the certificate of any server that a public authority has signed")),
        _ => {}
    }
    Ok(TlsOptions {
        ca: typed.ca.as_ref().map(Into::into),
        cert: typed.cert.as_ref().map(Into::into),
        key: typed.key.as_ref().map(Into::into),
        server_name: typed.server_name.clone(),
        verify,
    })
}
