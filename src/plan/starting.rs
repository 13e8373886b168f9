//! The plan that `plan new` writes: every section that can be used, filled with its default.

use super::document::{PasswordPlan, PasswordSource, Plan, TargetPlan, TlsPlan};
use super::url;
use crate::error::Result;

impl Plan {
    /// A plan to start from; a password inside a url becomes the name of an environment variable.
    pub fn starting(name: &str, source: &str, target: &str) -> Result<Plan> {
        let from = side("--source", source, "SOURCE_PASSWORD")?;
        Ok(Plan {
            name: name.to_string(),
            source: from.as_source(),
            target: side("--target", target, "TARGET_PASSWORD")?,
            databases: Default::default(),
            filter: Default::default(),
            rename: Default::default(),
            on_existing: Default::default(),
            on_loss: Default::default(),
            unknown_commands: Default::default(),
            indexes: Default::default(),
            max_loss_percent: super::document::default_max_loss_percent(),
            expired: Default::default(),
            limits: Default::default(),
            verify: Default::default(),
            cutover: Default::default(),
            latency: Default::default(),
            price: None,
        })
    }
}

fn side(option: &str, text: &str, variable: &str) -> Result<TargetPlan> {
    let at = url::parse(option, text)?;
    let password = at.password.map(|_| {
        PasswordPlan::From(PasswordSource {
            env: Some(variable.into()),
            ..Default::default()
        })
    });
    Ok(TargetPlan {
        url: at.location.url(at.tls, None, at.db),
        username: at.username,
        password,
        tls: at.tls.then(TlsPlan::default),
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::validate;

    #[test]
    fn a_starting_plan_is_valid_and_holds_no_password() {
        let plan = Plan::starting("a", "rediss://u:s3cret@[::1]:7/2", "redis://t").unwrap();
        let text = serde_json::to_string_pretty(&plan).unwrap();
        assert!(!text.contains("s3cret"), "{text}");
        let job = validate(&Plan::parse(&text).unwrap()).unwrap();
        let source = job.source.endpoint().unwrap();
        assert_eq!(source.redacted_url(), "rediss://u@[::1]:7/2");
        assert!(
            matches!(&source.password, Some(super::super::Secret::Env(name)) if name == "SOURCE_PASSWORD")
        );
        assert_eq!(job.target.redacted_url(), "redis://t:6379");
        for url in [
            "redis://a:1,[::1]:2/3",
            "rediss+sentinel://s:1,t:2/the-master/3",
            "redis+unix:///run/redis.sock?db=3",
        ] {
            let plan = Plan::starting("a", url, "redis://t").unwrap();
            assert_eq!(plan.source.url.as_deref(), Some(url));
            assert!(validate(&plan).is_ok());
        }
        assert!(Plan::starting("a", "nonsense", "redis://t").is_err());
    }
}
