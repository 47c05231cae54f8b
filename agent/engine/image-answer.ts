import { AppError } from '../../shared/errors.ts';
import type { HttpOptions } from '../../shared/http-client.ts';
import { openHttp, readBody } from '../../shared/http-client.ts';
import { Base64Field } from './base64-field.ts';
import { SMALL_BODY_BYTES, engineError } from './engine.ts';

/** The largest picture a request may name has 67 megapixels: 201 MB of noise, a third more as base64. */
const MOST_BYTES = 300 * 1024 * 1024;

/**
 * Where the picture of an answer goes while it arrives. What becomes of it there is no matter of the engine, so neither
 * call fails: whoever owns the sink keeps the failure and tells it later.
 */
export type ImageSink = {
  /** A picture begins. What came of one before it is void. */
  begin(): void;
  /** Resolves when more may come. */
  write(bytes: Buffer): Promise<void> | undefined;
};

/** For whom an answer is only a sign of life. */
export const NOWHERE: ImageSink = { begin: () => undefined, write: () => undefined };

/**
 * One call that answers a picture: as bytes, or as base64 in `field` of a JSON object. It is decoded while it arrives and
 * never held, so it takes no memory however large it is. Resolves at the last byte of the answer.
 */
export async function callForImage(
  url: string,
  {
    field,
    sink,
    errorOf = engineError,
    ...options
  }: HttpOptions & { field: string; sink: ImageSink; errorOf?: typeof engineError },
): Promise<void> {
  const answer = await openHttp(url, options);
  const type = answer.headers['content-type'] ?? '';
  if (answer.status !== 200) {
    const body = await readBody(answer, { maxBytes: SMALL_BODY_BYTES });
    throw errorOf({ status: answer.status, type, body });
  }
  const base64 = type.startsWith('image/') ? undefined : new Base64Field(field);
  sink.begin();
  let bytes = 0;
  for await (const chunk of answer.body as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > MOST_BYTES) {
      throw new AppError('RESULT_INVALID', `The engine's answer is larger than ${MOST_BYTES} bytes.`);
    }
    const decoded = base64 === undefined ? chunk : base64.push(chunk);
    if (decoded !== undefined && decoded.length > 0) await sink.write(decoded);
  }
  if (base64?.isComplete === false) {
    throw new AppError('RESULT_INVALID', `The engine's answer of ${bytes} bytes has no complete "${field}".`);
  }
}
