import { createHash } from 'node:crypto';
import { join } from 'node:path';

/** Linux allows 107 bytes in the path of a unix socket, macOS 103. */
const MAX_PATH_BYTES = 103;

/**
 * Where the agent with this state directory listens for its own machine: a socket in it, or on Windows a named pipe called
 * after it. Both sides find each other by the directory alone.
 */
export function socketPath(stateDir: string, platform: NodeJS.Platform = process.platform): string {
  if (platform === 'win32') {
    return `\\\\.\\pipe\\gantry-agent-${createHash('sha256').update(stateDir).digest('hex').slice(0, 16)}`;
  }
  const path = join(stateDir, 'agent.sock');
  if (Buffer.byteLength(path) <= MAX_PATH_BYTES) return path;
  throw new Error(
    `${stateDir} is too long: a socket in it may have ${MAX_PATH_BYTES} bytes in its path. Use a shorter state_dir.`,
  );
}
