/** The limits of the protocol. They are apart from its schemas because a program reads them at its start, and schemas take a while. */
export const LIMITS = {
  frameBytes: { value: 1024 * 1024, meaning: 'largest WebSocket message' },
  requestsInFlight: { value: 64, meaning: 'unanswered requests per link' },
  pingEveryMs: { value: 15_000, meaning: 'both sides ping' },
  silenceMs: { value: 45_000, meaning: 'without a frame the link ends, and jobs of that host may be taken elsewhere' },
  grantMs: { value: 5_000, meaning: 'a grant not taken by then goes back' },
  inputSilenceMs: { value: 60_000, meaning: 'missing inputs without a byte: INPUT_MISSING' },
  offerEveryMs: { value: 2_000, meaning: 'an offer is sent anew while jobs wait' },
  maxAttempts: { value: 3, meaning: 'attempts of one job' },
  inputBytes: { value: 32 * 1024 * 1024, meaning: 'largest input image' },
  resultKeptMs: { value: 72 * 3_600_000, meaning: 'results wait for their acknowledgement' },
  resultQuotaBytes: { value: 5 * 1024 ** 3, meaning: 'stored results per token' },
  leadMs: { value: 2_000, meaning: 'at most this long before the end of a running job the next one may be granted' },
  turnMs: { value: 30_000, meaning: 'shortest turn of a model that became ready while others wait' },
  heldAwayMs: { value: 600_000, meaning: 'after a person offloads or releases a model, batch work leaves it away' },
  statusSkipBytes: { value: 256 * 1024, meaning: 'unsent bytes on a link above which a status is skipped' },
  requestsPerSecond: { value: 100, meaning: 'requests of one token, over links and HTTP together' },
  requestBurst: { value: 500, meaning: 'so many of them at once' },
  inviteMs: { value: 600_000, meaning: 'an invite that was not used by then is void' },
  inviteTries: { value: 5, meaning: 'wrong codes, whoever sent them, that make every open invite void' },
  statusEndBytes: { value: 4 * 1024 * 1024, meaning: 'unsent bytes on a link above which it is ended' },
} as const satisfies Record<string, { value: number; meaning: string }>;

/** The name in the certificate that every agent makes for itself. It says nothing: the certificate is known as a whole. */
export const SERVER_NAME = 'gantry-agent';
