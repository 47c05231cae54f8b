import { CommanderError } from 'commander';
import { ConfigError } from '../shared/config-file.ts';
import { AppError } from '../shared/errors.ts';
import { EXIT } from '../shared/exit-codes.ts';
import { NoAgent } from './cli/host-client.ts';
import { AlreadyRunning } from './single-instance.ts';

/** Says what went wrong, on stderr, and which exit code that is. */
export function report(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.ok : EXIT.usage; // it has printed its text
  if (error instanceof ConfigError) return fail(EXIT.config, ...error.problems);
  if (error instanceof AlreadyRunning) return fail(EXIT.tryLater, error.message);
  if (error instanceof NoAgent) return fail(error.isDenied ? EXIT.denied : EXIT.unavailable, error.message);
  if (error instanceof AppError) return fail(EXIT.failed, error.message);
  const code = error instanceof Error && 'code' in error ? error.code : undefined;
  const message = error instanceof Error ? error.message : String(error);
  if (code === 'EADDRINUSE')
    return fail(EXIT.unavailable, `${message}. Another program has that port; choose another one with \`listen\`.`);
  if (code === 'EADDRNOTAVAIL')
    return fail(EXIT.config, `${message}. \`listen\` must name an address of this machine.`);
  if (code === 'EACCES' || code === 'EPERM' || code === 'EROFS') {
    return fail(
      EXIT.cannotCreate,
      `${message}. Run it as the user that owns state_dir, or choose another one with --state-dir.`,
    );
  }
  return fail(EXIT.failed, message);
}

export function fail(exitCode: number, ...lines: readonly string[]): number {
  for (const line of lines) process.stderr.write(`gantry-agent: ${line}\n`);
  return exitCode;
}
