import { join } from 'node:path';
import { z } from 'zod';

/**
 * How the bridges of one user reach the agent that one of them started: `link.json` in its state directory names the port of
 * the process that listens now, and `token` is the secret. A link.json counts only while the process in it is the one that
 * holds the directory: what a dead agent left behind may name a port that is somebody else's by now.
 */
export const PrivateLink = z.object({ pid: z.int().positive(), url: z.string() });
export type PrivateLink = z.infer<typeof PrivateLink>;

export function linkFile(stateDir: string): string {
  return join(stateDir, 'link.json');
}

/** The token's text, readable by its owner only. */
export function tokenFile(stateDir: string): string {
  return join(stateDir, 'token');
}
