import { execa } from 'execa';
import { pause } from '../shared/abort.ts';
import type { Log } from '../shared/log.ts';
import type { ServiceSettings } from './config.ts';

export type ServiceNotifyOptions = Pick<ServiceSettings, 'notifySocket' | 'watchdogMs' | 'path'> & {
  /** What `systemctl status` shows. Asks only what is known already. */
  status: () => string;
  log: Log;
};

/** A change of the status is told at most this often. */
const STATUS_EVERY_MS = 10_000;
/** The program waits until systemd has read the message, by itself for 5 s. */
const TELL_MS = 6_000;
const MAX_STATUS_CHARS = 300;

/**
 * Tells systemd how the agent is, by the program `systemd-notify`: Node has no unix datagrams. The watchdog is fed by the
 * event loop and asks nothing else, so that no driver, disk or server can make systemd restart the agent. Without a socket
 * it does nothing; a message that does not arrive is logged and never the agent's failure.
 */
export class ServiceNotify implements AsyncDisposable {
  readonly #options: ServiceNotifyOptions;
  readonly #stop = new AbortController();
  #beats: Promise<void> = Promise.resolve();
  #toldStatus = '';
  #fedMs = -Infinity;
  #hasFailed = false;

  constructor(options: ServiceNotifyOptions) {
    this.#options = options;
  }

  /** The port is open. From now on the watchdog is fed. */
  async ready(): Promise<void> {
    if (this.#options.notifySocket === undefined || this.#stop.signal.aborted) return;
    await this.#tell(['READY=1', ...this.#feed(), ...this.#status()]);
    this.#beats = this.#beat(this.#stop.signal);
  }

  /** The agent ends by itself or was asked to; what it still does is fed to the watchdog. */
  async stopping(): Promise<void> {
    await this.#tell(['STOPPING=1', 'STATUS=stopping: running jobs have their grace, then every model server ends']);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop.abort();
    await this.#beats;
  }

  async #beat(signal: AbortSignal): Promise<void> {
    const everyMs = Math.min(STATUS_EVERY_MS, (this.#options.watchdogMs ?? Infinity) / 3);
    for (;;) {
      await pause(everyMs, signal);
      if (signal.aborted) return;
      await this.#tell([...this.#feed(), ...this.#status()]);
    }
  }

  /** Three times in the watchdog's time, so that one message may be lost. */
  #feed(): string[] {
    const { watchdogMs } = this.#options;
    const isDue = watchdogMs !== undefined && performance.now() - this.#fedMs >= 0.3 * watchdogMs;
    return isDue ? ['WATCHDOG=1'] : [];
  }

  #status(): string[] {
    const text = this.#options
      .status()
      .replace(/[\p{Cc}\s]+/gu, ' ')
      .slice(0, MAX_STATUS_CHARS);
    return text === this.#toldStatus ? [] : [`STATUS=${text}`];
  }

  async #tell(messages: readonly string[]): Promise<void> {
    const { notifySocket, path, log } = this.#options;
    if (notifySocket === undefined || messages.length === 0) return;
    const { failed, shortMessage } = await execa('systemd-notify', messages, {
      ...{ timeout: TELL_MS, killSignal: 'SIGKILL', reject: false, stdin: 'ignore', stdout: 'ignore' },
      ...{ extendEnv: false, env: { NOTIFY_SOCKET: notifySocket, PATH: path } },
    });
    if (!failed) this.#note(messages);
    if (failed && !this.#hasFailed) log.warn({ event: 'systemd-not-told', messages, reason: shortMessage });
    this.#hasFailed = failed;
  }

  #note(messages: readonly string[]): void {
    if (messages.includes('WATCHDOG=1')) this.#fedMs = performance.now();
    const status = messages.find((message) => message.startsWith('STATUS='));
    if (status !== undefined) this.#toldStatus = status.slice('STATUS='.length);
  }
}
