//! Deviations of providers from the RFCs that are tolerated.

/// A tolerated deviation from the RFCs, as one word for the status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Deviation(&'static str);

impl Deviation {
    /// `expires_in` is a JSON string.
    pub const EXPIRES_IN_STRING: Self = Self("expires_in-string");
    /// `expires_in` has a fraction or an exponent.
    pub const EXPIRES_IN_FLOAT: Self = Self("expires_in-float");
    /// There is no `expires_in` (which RFC 6749 only recommends).
    pub const EXPIRES_IN_MISSING: Self = Self("expires_in-missing");
    /// `expires_in` is `null`.
    pub const EXPIRES_IN_NULL: Self = Self("expires_in-null");
    /// `expires_in` is zero.
    pub const EXPIRES_IN_ZERO: Self = Self("expires_in-zero");
    /// `expires_in` is negative.
    pub const EXPIRES_IN_NEGATIVE: Self = Self("expires_in-negative");
    /// `expires_in` is longer than ten years.
    pub const EXPIRES_IN_HUGE: Self = Self("expires_in-huge");
    /// `expires_in` is no number at all.
    pub const EXPIRES_IN_INVALID: Self = Self("expires_in-invalid");
    /// There is no `token_type`.
    pub const TOKEN_TYPE_MISSING: Self = Self("token_type-missing");
    /// `token_type` is not a spelling of `Bearer`.
    pub const TOKEN_TYPE_OTHER: Self = Self("token_type-other");
    /// `scope` is an array.
    pub const SCOPE_ARRAY: Self = Self("scope-array");
    /// An error came with the status 200.
    pub const ERROR_WITH_200: Self = Self("error-with-200");
    /// The body is form-encoded.
    pub const FORM_ENCODED: Self = Self("form-encoded");
    /// The body is JSON and `Content-Type` says otherwise.
    pub const CONTENT_TYPE: Self = Self("content-type");
    /// The access token is a JWT that expires before `expires_in` says.
    pub const JWT_EXPIRES_EARLIER: Self = Self("jwt-expires-earlier");

    /// The word.
    pub fn as_str(self) -> &'static str {
        self.0
    }
}
