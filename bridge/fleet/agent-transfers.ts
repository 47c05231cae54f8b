import { createReadStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { AppError } from '../../shared/errors.ts';
import { fetchBody, openHttp, readBody } from '../../shared/http-client.ts';
import type { HttpAnswer } from '../../shared/http-client.ts';
import type { HostConfig } from './host-view.ts';
import { authFailed, parseError, textOf } from './link-errors.ts';

/** The slowest transfer that is waited for. */
const SLOWEST_BYTES_PER_S = 20_000;
const MAX_PREVIEW_BYTES = 4 * 1024 * 1024;

/** Results, previews and inputs of one agent, over HTTP beside its link. They need no link that is up. */
export class AgentTransfers {
  readonly #hostNow: () => HostConfig;
  #usualMs = 0;
  #gone = new AbortController();

  /** Its address may be another one after each connection. */
  constructor(hostNow: () => HostConfig) {
    this.#hostNow = hostNow;
  }

  get #host(): HostConfig {
    return this.#hostNow();
  }

  get #url(): string {
    return this.#host.url.replace(/^ws/, 'http').replace(/\/$/, '');
  }

  /** How long a result takes to arrive, observed; 0 until one did. */
  get usualMs(): number {
    return this.#usualMs;
  }

  /** One more result came: the average follows the network slowly. */
  note(ms: number): void {
    this.#usualMs = this.#usualMs === 0 ? ms : this.#usualMs * 0.8 + ms * 0.2;
  }

  /** Ends what is under way, because the host is silent. The next ones start as ever. */
  giveUp(error: AppError): void {
    this.#gone.abort(error);
    this.#gone = new AbortController();
  }

  /**
   * The stored image with that hash, or what of it comes after `from` bytes. The caller reads or destroys the body.
   * SAVE_FAILED where the host has another image by now: the two must not be put together.
   */
  async openResult(
    jobId: string,
    o: { sha256: string; bytes: number; from: number; signal: AbortSignal },
  ): Promise<HttpAnswer> {
    const etag = `"${o.sha256}"`;
    const rest = o.from > 0 ? { range: `bytes=${o.from}-`, 'if-range': etag } : {};
    const answer = await openHttp(`${this.#url}/v1/results/${jobId}`, {
      ...this.#options(o.signal, o.bytes - o.from),
      headers: { ...this.#authorization(), ...rest },
    }).catch((error: unknown) => this.#throw(error, o.signal));
    if (answer.status !== 200 && answer.status !== 206) throw await this.#refusal(answer);
    const isSame = answer.headers.etag === etag || (answer.headers.etag === undefined && o.from === 0);
    const begins = answer.status === 200 ? 0 : Number(/^bytes (\d+)-/.exec(answer.headers['content-range'] ?? '')?.[1]);
    if (isSame && begins === o.from) return answer;
    answer.body.destroy();
    const message = `${this.#host.name} has another image for this job than the one it announced, or sent another part of it.`;
    throw new AppError('SAVE_FAILED', `${message} Nothing was saved; it is fetched again.`);
  }

  async fetchPreview(jobId: string, signal: AbortSignal): Promise<Buffer> {
    const answer = await fetchBody(`${this.#url}/v1/results/${jobId}/preview`, {
      ...this.#options(signal, MAX_PREVIEW_BYTES),
      maxBytes: MAX_PREVIEW_BYTES,
    }).catch((error: unknown) => this.#throw(error, signal));
    if (answer.status !== 200) throw this.#errorOf(answer.status, answer.body);
    return answer.body;
  }

  async uploadInput(sha256: string, o: { path: string; signal: AbortSignal }): Promise<void> {
    const { size } = await stat(o.path).catch((error: unknown) => {
      throw new AppError('INPUT_INVALID', `The input image ${o.path} cannot be read: ${textOf(error)}.`, {
        cause: error,
      });
    });
    const answer = await fetchBody(`${this.#url}/v1/inputs/${sha256}`, {
      ...this.#options(o.signal, size),
      method: 'PUT',
      headers: { ...this.#authorization(), 'content-length': size, 'content-type': 'application/octet-stream' },
      body: createReadStream(o.path),
      maxBytes: 64 * 1024,
    }).catch((error: unknown) => this.#throw(error, o.signal));
    if (answer.status < 200 || answer.status > 299) throw this.#errorOf(answer.status, answer.body);
  }

  #authorization(): { authorization: string } {
    return { authorization: `Bearer ${this.#host.token}` };
  }

  #options(signal: AbortSignal, bytes: number) {
    const { tls } = this.#host;
    const deadlineMs = 30_000 + (bytes / SLOWEST_BYTES_PER_S) * 1000;
    // Neither is a time-out, which Node 20 would forget at a garbage collection.
    const ends = AbortSignal.any([signal, this.#gone.signal]);
    return { headers: this.#authorization(), signal: ends, deadlineMs, ...(tls !== undefined && { tls }) };
  }

  #throw(error: unknown, signal: AbortSignal): never {
    if (signal.aborted || error instanceof AppError) throw error; // of the host's silence
    throw new AppError('AGENT_UNREACHABLE', `A transfer with ${this.#host.name} failed: ${textOf(error)}.`, {
      cause: error,
    });
  }

  async #refusal(answer: HttpAnswer): Promise<AppError> {
    return this.#errorOf(answer.status, await readBody(answer, { maxBytes: 64 * 1024 }).catch(() => Buffer.alloc(0)));
  }

  #errorOf(status: number, body: Buffer): AppError {
    if (status === 401) return authFailed(this.#host);
    const said = parseError(body);
    if (said !== undefined) return said;
    if (status === 404) return new AppError('JOB_NOT_FOUND', `${this.#host.name} does not have it (any more).`);
    return new AppError('AGENT_UNREACHABLE', `${this.#host.name} answered HTTP ${status} to a transfer.`);
  }
}
