"""One encoder, several heads, and what is kept of it."""

import torch
from torch import nn

from shared.networks.encoders import create_encoder
from shared.networks.heads import ContrastiveModel, ProjectionHead
from shared.pretext.network import PretextModel, as_tuple, kept_part


class MapHead(nn.Module):
    takes_map = True

    def forward(self, features):
        return features.mean((2, 3))


def test_each_input_gets_the_answer_of_its_head():
    encoder = create_encoder("simclr_resnet8_1x_sk0", 8)
    model = ContrastiveModel(encoder, ProjectionHead(64, 2, 5))
    assert model.features == 64
    linear = nn.Linear(64, 4)
    several = PretextModel(model, [linear, None, MapHead()]).eval()
    images, larger = torch.rand(3, 3, 8, 8), torch.rand(2, 3, 12, 12)
    answers = several(images, larger, images)
    features = encoder(images)
    assert torch.allclose(answers[0], linear(features))
    assert torch.allclose(answers[1], model(larger))
    assert torch.allclose(answers[2], features, atol=1e-6)


def test_the_artifact_has_the_encoder_and_the_projection_head_alone():
    model = ContrastiveModel(create_encoder("simclr_resnet8_1x_sk0", 8), ProjectionHead(64, 0))
    trained = PretextModel(model, [nn.Linear(64, 4)])
    assert kept_part(model) is model
    assert kept_part(trained).state_dict().keys() == model.state_dict().keys()
    assert len(trained.state_dict()) == len(model.state_dict()) + 2


def test_as_tuple():
    assert as_tuple(torch.ones(1)) == (torch.ones(1),)
    assert len(as_tuple((torch.ones(1), torch.ones(1)))) == 2
