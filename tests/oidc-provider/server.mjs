// Starts oidc-provider on a loopback port for the suites.
//
// Standard input: one JSON document { clients, resources, scopes, lifetime, tls }, so that no secret is on a command line. With `tls`
// ({ key, cert, ca }), it speaks TLS and asks for certificates of clients.
// Standard output: one line of JSON, { issuer }, once requests are answered. It ends when standard input does.

import { createServer } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import { once } from 'node:events';
import Provider, { errors } from 'oidc-provider';

const lines = process.stdin.setEncoding('utf8')[Symbol.asyncIterator]();
let text = '';
while (!text.includes('\n')) {
  const { value, done } = await lines.next();
  if (done) process.exit(2);
  text += value;
}
const { clients, resources, scopes, lifetime, tls } = JSON.parse(text);

const server = tls ? createTlsServer({ ...tls, requestCert: true, rejectUnauthorized: false }) : createServer();
server.listen(0, '127.0.0.1');
await once(server, 'listening');
const issuer = `${tls ? 'https' : 'http'}://127.0.0.1:${server.address().port}`;

const provider = new Provider(issuer, {
  clients: clients.map((client) => ({
    grant_types: ['client_credentials'],
    redirect_uris: [],
    response_types: [],
    ...client,
  })),
  scopes,
  // Not all of them are on by default.
  clientAuthMethods: [
    'client_secret_basic', 'client_secret_post', 'client_secret_jwt', 'private_key_jwt',
    ...(tls ? ['tls_client_auth', 'self_signed_tls_client_auth'] : []),
  ],
  enabledJWA: {
    clientAuthSigningAlgValues: ['HS256', 'HS512', 'RS256', 'RS512', 'PS256', 'PS384', 'ES256', 'ES384', 'EdDSA'],
  },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    mTLS: {
      enabled: Boolean(tls),
      tlsClientAuth: true,
      selfSignedTlsClientAuth: true,
      getCertificate: (ctx) => ctx.req.socket.getPeerX509Certificate()?.toString(),
      certificateAuthorized: (ctx) => ctx.req.socket.authorized,
      certificateSubjectMatches: (ctx, property, expected) => property === 'tls_client_auth_san_dns'
        && ctx.req.socket.getPeerX509Certificate().checkHost(expected) === expected,
    },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo(ctx, resource) {
        if (!resources.includes(resource)) throw new errors.InvalidTarget();
        return { scope: scopes.join(' '), accessTokenFormat: 'jwt', accessTokenTTL: lifetime };
      },
    },
  },
});
server.on('request', provider.callback());
process.stdout.write(`${JSON.stringify({ issuer })}\n`);

process.stdin.resume();
process.stdin.on('end', () => process.exit(0));
