import { CommanderError } from 'commander';
import { ConfigError } from '../../shared/config-file.ts';
import { AppError } from '../../shared/errors.ts';
import type { ErrorCode } from '../../shared/errors.ts';
import { EXIT } from '../../shared/exit-codes.ts';
import { Interrupted } from './interrupts.ts';

/** What a script can do about it; everything else is `failed`. */
const EXIT_OF: Partial<Record<ErrorCode, number>> = {
  INVALID_ARGUMENT: EXIT.usage,
  INPUT_INVALID: EXIT.badInput,
  AGENT_UNREACHABLE: EXIT.unavailable,
  NO_HOST: EXIT.unavailable,
  VERSION_MISMATCH: EXIT.unavailable,
  SAVE_FAILED: EXIT.cannotCreate,
  DISK_FULL: EXIT.ioError,
  TIMEOUT: EXIT.tryLater,
  GPU_BUSY: EXIT.tryLater,
  INTERRUPTED: EXIT.tryLater,
  RATE_LIMITED: EXIT.tryLater,
  PATH_DENIED: EXIT.denied,
  AUTH_FAILED: EXIT.denied,
};

/**
 * Says what went wrong, on stderr, and for a program on stdout too. Returns the exit code. What commander refuses it has said
 * itself; a command that was interrupted says nothing more.
 */
export function report(error: unknown, { isJson }: { isJson: boolean }): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
  if (error instanceof Interrupted) return error.exitCode;
  const { lines, code, exitCode } = failureOf(error);
  process.stderr.write(lines.map((line) => `gantry: ${line}\n`).join(''));
  if (isJson) {
    const problems = code === 'CONFIG' ? { problems: lines } : {};
    const told = { schema: 1, status: 'failed', error: { code, message: messageOf(error), ...problems } };
    process.stdout.write(`${JSON.stringify(told, undefined, 2)}\n`);
  }
  return exitCode;
}

/** The lines for a person, the code for a program, and the exit code for a script. */
function failureOf(error: unknown): { lines: readonly string[]; code: string; exitCode: number } {
  if (error instanceof ConfigError) return { lines: error.problems, code: 'CONFIG', exitCode: EXIT.config };
  if (error instanceof AppError) {
    const { code, message } = error;
    return { lines: [`${code}: ${message}`], code, exitCode: EXIT_OF[code] ?? EXIT.failed };
  }
  return { lines: [messageOf(error)], code: 'INTERNAL', exitCode: EXIT.failed };
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
