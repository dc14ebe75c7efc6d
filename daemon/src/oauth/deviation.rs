//! Where providers depart from the RFCs and are understood all the same.

/// A tolerated departure from the RFCs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Deviation {
    /// `expires_in` is a JSON string.
    ExpiresInString,
    /// `expires_in` has a fraction or an exponent.
    ExpiresInFloat,
    /// There is no `expires_in` (which RFC 6749 only recommends).
    ExpiresInMissing,
    /// `expires_in` is `null`.
    ExpiresInNull,
    /// `expires_in` is zero.
    ExpiresInZero,
    /// `expires_in` is negative.
    ExpiresInNegative,
    /// `expires_in` is longer than anybody means.
    ExpiresInHuge,
    /// `expires_in` is no number at all.
    ExpiresInInvalid,
    /// There is no `token_type`.
    TokenTypeMissing,
    /// `token_type` is not a spelling of `Bearer`.
    TokenTypeOther,
    /// `scope` is an array.
    ScopeArray,
    /// An error came with the status 200.
    ErrorWith200,
    /// The body is form-encoded.
    FormEncoded,
    /// The body is JSON and `Content-Type` says otherwise.
    ContentType,
    /// The access token is a JWT that expires before `expires_in` says.
    JwtExpiresEarlier,
}

impl Deviation {
    /// The departure as one word, for status.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ExpiresInString => "expires_in-string",
            Self::ExpiresInFloat => "expires_in-float",
            Self::ExpiresInMissing => "expires_in-missing",
            Self::ExpiresInNull => "expires_in-null",
            Self::ExpiresInZero => "expires_in-zero",
            Self::ExpiresInNegative => "expires_in-negative",
            Self::ExpiresInHuge => "expires_in-huge",
            Self::ExpiresInInvalid => "expires_in-invalid",
            Self::TokenTypeMissing => "token_type-missing",
            Self::TokenTypeOther => "token_type-other",
            Self::ScopeArray => "scope-array",
            Self::ErrorWith200 => "error-with-200",
            Self::FormEncoded => "form-encoded",
            Self::ContentType => "content-type",
            Self::JwtExpiresEarlier => "jwt-expires-earlier",
        }
    }
}
