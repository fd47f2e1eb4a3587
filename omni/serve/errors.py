"""What can go wrong in serving, as a small tree. Each error knows its wire code, HTTP status and whether to try again.

    OmniError
    ├── BadRequest            400  the request cannot be understood (param names the field)
    │   ├── BadAudio          400  the upload is no audio we can answer (code says why)
    │   └── UnknownAdaptor    404  the checkpoint has none of this name; the message lists those it has
    ├── Unauthorized          401  the key is missing or wrong
    ├── Forbidden             403  a page of an origin that may not connect
    ├── UploadTooSlow         408  the question did not arrive in time
    ├── SessionTaken          409  another connection has resumed this session
    ├── TooLarge              413  a limit of the request was passed
    ├── UnknownModel          404
    ├── NotResumable          404  no session is kept that this token resumes
    ├── RateLimited           429  more at once than may come
    ├── Busy                  503  every slot is taken: the same request will pass later   (busy is not broken)
    ├── Draining              503  this cluster takes no new turns
    ├── StoreLost             503  the sessions' store does not answer
    ├── WorkerLost            502  the worker died and nobody could take over
    ├── DeadlineExceeded      504  no progress within the deadline
    ├── Cancelled             499  the client left or spoke again
    └── Internal              500  our mistake
"""


class OmniError(Exception):
    """An error with a wire code; `retry_after` in seconds where trying again may help."""

    status = 500
    code = "internal_error"

    def __init__(
        self, message: str, *, code: str | None = None, retry_after: float | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code
        self.retry_after = retry_after
        self.param = param

    def __reduce__(self) -> tuple:
        return _restore, (type(self), self.message, self.code, self.retry_after, self.param)


def _restore(
    kind: type[OmniError], message: str, code: str, retry_after: float | None, param: str | None
) -> OmniError:
    return kind(message, code=code, retry_after=retry_after, param=param)


class BadRequest(OmniError):
    status, code = 400, "bad_request"


class BadAudio(BadRequest):
    code = "bad_audio"


class UnknownAdaptor(BadRequest):
    status, code = 404, "adaptor_not_found"


class Unauthorized(OmniError):
    status, code = 401, "invalid_api_key"


class Forbidden(OmniError):
    status, code = 403, "origin_not_allowed"


class UploadTooSlow(OmniError):
    status, code = 408, "upload_too_slow"


class SessionTaken(OmniError):
    status, code = 409, "session_taken"


class TooLarge(OmniError):
    status, code = 413, "too_large"


class UnknownModel(OmniError):
    status, code = 404, "model_not_found"


class NotResumable(OmniError):
    status, code = 404, "session_not_resumable"


class StoreLost(OmniError):
    status, code = 503, "store_lost"


class RateLimited(OmniError):
    status, code = 429, "rate_limit_exceeded"


class Busy(OmniError):
    status, code = 503, "busy"


class Draining(OmniError):
    status, code = 503, "draining"


class WorkerLost(OmniError):
    status, code = 502, "worker_lost"


class DeadlineExceeded(OmniError):
    status, code = 504, "deadline_exceeded"


class Cancelled(OmniError):
    status, code = 499, "cancelled"


class Internal(OmniError):
    status, code = 500, "internal_error"
