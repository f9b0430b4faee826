//! The body of every error answer of the API: `{"code":404,"error":"NoSuchObject","message":"…"}`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The stable name of an error, with the status it is answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorName {
    /// No such route or file.
    NotFound,
    /// No or no valid token, or a token without any permission on the cache, whether that exists or
    /// not.
    Unauthorized,
    /// The cache does not exist; told only to callers that may know.
    NoSuchCache,
    /// The cache does not have that path.
    NoSuchObject,
    /// A valid token that lacks this permission.
    AccessError,
    /// A cache of that name exists.
    CacheAlreadyExists,
    /// The request itself is wrong.
    RequestError,
    /// A compression we do not know.
    InvalidCompressionType,
    /// The NAR cannot be put together.
    IncompleteNar,
    /// Our mistake.
    InternalServerError,
    /// Asked too much too fast; try again. Not one of Attic's names.
    TooManyRequests,
    /// As many pushes by chunks have not ended as one caller may have. Not one of Attic's names.
    TooManySessions,
    /// A part of the server is down or busy; try again. Not one of Attic's names.
    ServiceUnavailable,
}

impl ErrorName {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::NotFound,
        Self::Unauthorized,
        Self::NoSuchCache,
        Self::NoSuchObject,
        Self::AccessError,
        Self::CacheAlreadyExists,
        Self::RequestError,
        Self::InvalidCompressionType,
        Self::IncompleteNar,
        Self::InternalServerError,
        Self::TooManyRequests,
        Self::TooManySessions,
        Self::ServiceUnavailable,
    ];

    /// The HTTP status.
    pub const fn status(self) -> u16 {
        match self {
            Self::RequestError | Self::InvalidCompressionType | Self::CacheAlreadyExists => 400,
            Self::Unauthorized => 401,
            Self::AccessError => 403,
            Self::NotFound | Self::NoSuchCache | Self::NoSuchObject => 404,
            Self::TooManyRequests | Self::TooManySessions => 429,
            Self::InternalServerError => 500,
            Self::IncompleteNar | Self::ServiceUnavailable => 503,
        }
    }

    /// The name on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "NotFound",
            Self::Unauthorized => "Unauthorized",
            Self::NoSuchCache => "NoSuchCache",
            Self::NoSuchObject => "NoSuchObject",
            Self::AccessError => "AccessError",
            Self::CacheAlreadyExists => "CacheAlreadyExists",
            Self::RequestError => "RequestError",
            Self::InvalidCompressionType => "InvalidCompressionType",
            Self::IncompleteNar => "IncompleteNar",
            Self::InternalServerError => "InternalServerError",
            Self::TooManyRequests => "TooManyRequests",
            Self::TooManySessions => "TooManySessions",
            Self::ServiceUnavailable => "ServiceUnavailable",
        }
    }

    /// The name as read from the wire; other servers may have others.
    pub fn from_wire(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == name)
    }
}

impl fmt::Display for ErrorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The body of an error answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The HTTP status, again.
    pub code: u16,
    /// An [`ErrorName`], or another server's.
    pub error: String,
    /// What happened, for people.
    pub message: String,
}

impl ErrorBody {
    /// The body of `name`, with the status that belongs to it.
    pub fn new(name: ErrorName, message: impl Into<String>) -> Self {
        Self { code: name.status(), error: name.as_str().to_owned(), message: message.into() }
    }

    /// Which of the known errors it is.
    pub fn name(&self) -> Option<ErrorName> {
        ErrorName::from_wire(&self.error)
    }
}
