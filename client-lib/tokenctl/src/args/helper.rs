//! The arguments of `tokenctl helper`.

use clap::Subcommand;
use tokend_client::TokenName;

use super::{VariantArgs, examples};

/// A program that asks for credentials.
#[derive(Debug, Subcommand)]
pub(crate) enum Helper {
    /// Answer kubectl and other clients of Kubernetes, as a credential plugin.
    ///
    /// In the kubeconfig file, for a user: `exec: { apiVersion: client.authentication.k8s.io/v1, interactiveMode: Never, command:
    /// tokenctl, args: [helper, kubectl, NAME] }`.
    #[command(after_help = examples::KUBECTL)]
    Kubectl {
        /// The token's name in the daemon's configuration.
        name: TokenName,

        #[command(flatten)]
        variant: VariantArgs,
    },

    /// Answer git, as one of its credential helpers.
    ///
    /// `git config --global credential.https://git.example.helper '!tokenctl helper git NAME'`. A token that the server
    /// refuses is reported to the daemon, as by `tokenctl reject`.
    #[command(after_help = examples::GIT)]
    Git {
        /// The token's name in the daemon's configuration.
        name: TokenName,

        /// The operation. git adds this word itself.
        #[arg(value_name = "get|store|erase")]
        operation: String,

        /// The user name for a git before 2.46, which sends the token as a password.
        #[arg(long, value_name = "USER", default_value = "oauth2")]
        username: String,

        #[command(flatten)]
        variant: VariantArgs,
    },

    /// Answer Docker and other clients of container registries, as a credential helper.
    ///
    /// Make the program `docker-credential-tokend` with the two lines `#!/bin/sh` and `exec tokenctl helper docker NAME "$@"`, and
    /// write `"credHelpers": { "registry.example": "tokend" }` in `~/.docker/config.json`.
    #[command(after_help = examples::DOCKER)]
    Docker {
        /// The token's name in the daemon's configuration.
        name: TokenName,

        /// The operation. Docker adds this word itself.
        #[arg(value_name = "get|store|erase|list")]
        operation: String,

        /// The user name that the registry expects with a token as the password.
        #[arg(long, value_name = "USER", default_value = "oauth2")]
        username: String,

        #[command(flatten)]
        variant: VariantArgs,
    },

    /// Answer Bazel, as a credential helper.
    ///
    /// Make a program with the two lines `#!/bin/sh` and `exec tokenctl helper bazel NAME "$@"`, and run Bazel with
    /// `--credential_helper=cache.example=/path/of/the/program`.
    #[command(after_help = examples::BAZEL)]
    Bazel {
        /// The token's name in the daemon's configuration.
        name: TokenName,

        /// The operation. Bazel adds this word itself.
        #[arg(value_name = "get")]
        operation: String,

        #[command(flatten)]
        variant: VariantArgs,
    },

    /// Answer a Google client library, as the executable of a credential configuration.
    #[command(after_help = examples::GOOGLE)]
    Google {
        /// The token's name in the daemon's configuration.
        name: TokenName,

        #[command(flatten)]
        variant: VariantArgs,
    },
}
