/** PURE. Above this most clients have given up on a call, so none may ask to wait longer. */
export const MAX_WAIT_SECONDS = 45;

/** How long each client is known to wait for one call, a good part of it; by a piece of the name it gives itself. */
const KNOWN_CLIENTS: readonly { name: RegExp; waitMs: number }[] = [
  { name: /claude[-_ ]?code/i, waitMs: Infinity },
  { name: /visual studio code|^vscode/i, waitMs: Infinity },
  { name: /codex/i, waitMs: 270_000 },
  { name: /gemini/i, waitMs: 540_000 },
];

/** How long a call may wait before it answers `running`. */
export function syncWaitMs(client: string, configuredMs: number | undefined): number {
  if (configuredMs !== undefined) return configuredMs;
  return KNOWN_CLIENTS.find(({ name }) => name.test(client))?.waitMs ?? MAX_WAIT_SECONDS * 1_000;
}
