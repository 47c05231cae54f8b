/**
 * Every failure that can leave a process. `retryable` tells the bridge whether another attempt, on this host or another,
 * may succeed; `meaning` is the row of the table in docs/PROTOCOL.md.
 */
export const ERROR_CODES = {
  INVALID_ARGUMENT: { retryable: false, meaning: 'A parameter is missing, malformed or out of range.' },
  PATH_DENIED: { retryable: false, meaning: 'A path is outside the allowed roots or cannot be written.' },
  INPUT_INVALID: { retryable: false, meaning: 'An input image cannot be read or decoded.' },
  INPUT_MISSING: { retryable: true, meaning: 'The bytes of an input image did not arrive in time.' },
  AGENT_UNREACHABLE: { retryable: true, meaning: 'No connection to the agent of a host.' },
  AUTH_FAILED: { retryable: false, meaning: 'The agent refused the token.' },
  VERSION_MISMATCH: { retryable: false, meaning: 'Bridge and agent speak different protocol versions.' },
  NO_HOST: { retryable: true, meaning: 'No host can run the job now; the reason of each is listed.' },
  MODEL_UNKNOWN: { retryable: false, meaning: 'The model is configured on no connected host.' },
  MODEL_FAILED: { retryable: true, meaning: 'A model server did not start, or died.' },
  ENGINE_FAILED: { retryable: true, meaning: 'The engine answered a request with an error.' },
  RESULT_INVALID: { retryable: true, meaning: 'The engine returned bytes that are not a complete image.' },
  TIMEOUT: { retryable: true, meaning: 'Something outside this process did not answer in time.' },
  GPU_OUT_OF_MEMORY: { retryable: true, meaning: 'The job or model needs more VRAM than the host can free.' },
  GPU_BUSY: { retryable: true, meaning: 'The GPU is needed by work that may not be interrupted.' },
  GPU_LOST: { retryable: true, meaning: 'The GPU or its driver does not answer.' },
  JOB_NOT_FOUND: { retryable: false, meaning: 'No job or batch has this id, or it belongs to another token.' },
  JOB_CONFLICT: { retryable: false, meaning: 'The job id is known with other parameters.' },
  GRANT_EXPIRED: { retryable: true, meaning: 'The grant was taken too late; the slot went back.' },
  INTERRUPTED: { retryable: true, meaning: 'The agent stopped or restarted while it had the job.' },
  QUARANTINED: { retryable: false, meaning: 'The job killed its model server twice and is not tried again.' },
  QUOTA_EXCEEDED: { retryable: false, meaning: 'The token has used up its share of the result store.' },
  RATE_LIMITED: { retryable: true, meaning: 'Too many requests or failed authentications.' },
  DISK_FULL: { retryable: true, meaning: 'No space is left where a file must be written.' },
  SAVE_FAILED: { retryable: true, meaning: 'A finished image could not be saved on the laptop.' },
  INTERNAL: { retryable: false, meaning: 'A defect of gantry itself.' },
} as const satisfies Record<string, { retryable: boolean; meaning: string }>;

export type ErrorCode = keyof typeof ERROR_CODES;

export function isErrorCode(text: string): text is ErrorCode {
  return Object.hasOwn(ERROR_CODES, text);
}

/** The one error class that leaves a process. The message says what failed, why, and what to do next. */
export class AppError extends Error {
  readonly code: ErrorCode;
  /** When to ask again at the earliest, where that is known. */
  readonly retryAfterMs: number | undefined;

  constructor(code: ErrorCode, message: string, options?: { cause?: unknown; retryAfterMs?: number }) {
    super(message, options);
    this.name = 'AppError';
    this.code = code;
    this.retryAfterMs = options?.retryAfterMs;
  }

  get retryable(): boolean {
    return ERROR_CODES[this.code].retryable;
  }
}

/** Wraps what a foreign library threw, keeping it as `cause`; an AppError passes unchanged. */
export function toAppError(error: unknown, code: ErrorCode = 'INTERNAL'): AppError {
  if (error instanceof AppError) return error;
  return new AppError(code, error instanceof Error ? error.message : String(error), { cause: error });
}

/** The code that Node, or we, gave an error: ENOENT, for one. undefined where it has none. */
export function errorCode(error: unknown): string | undefined {
  return error instanceof Error && 'code' in error ? String(error.code) : undefined;
}
